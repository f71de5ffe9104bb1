"""Save the model as MLflow has it, into the folder named. Run in MLflow's environment."""

from __future__ import annotations

import os
import sys

import joblib
import mlflow.sklearn

mlflow.sklearn.save_model(
    joblib.load(os.environ["PEER_MODEL"]), sys.argv[1], serialization_format="cloudpickle"
)
