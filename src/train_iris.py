"""Train, track and promote iris: `mlops train iris --promote`."""

from mlops.cli import main

if __name__ == "__main__":
    main(["train", "iris", "--promote"])
