"""Write data/housing.csv: `python src/load_data.py` is `mlops prepare housing`."""

from mlops.cli import main

if __name__ == "__main__":
    main(["prepare", "housing"])
