"""Train, track and promote housing: `mlops train housing --promote`."""

from mlops.cli import main

if __name__ == "__main__":
    main(["train", "housing", "--promote"])
