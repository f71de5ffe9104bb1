"""The other peer: a bare ASGI application that reads, validates, predicts, and keeps nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks import bare
from mlops.deploy.reader import Reader
from mlops.package.bundle import open_bundle
from mlops.usecases.housing import HOUSING


def application() -> Any:
    """Return it, with the one bundle of MLOPS_HOME."""
    [path] = (Path(os.environ["MLOPS_HOME"]) / "models" / "bundles").glob("?" * 64)
    model, reader = open_bundle(path).model, Reader(HOUSING)

    async def predict(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or scope["method"] == "GET":
            await bare.app(scope, receive, send)
            return
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        rows, _ = reader.one(body)
        [price] = model.run(np.asarray(rows, dtype=np.float64)).prediction.tolist()
        answer = orjson.dumps({"predicted_price": price})
        length = (b"content-length", str(len(answer)).encode())
        headers = [(b"content-type", b"application/json"), length]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return predict
