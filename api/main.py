"""The iris service: `uvicorn api.main:app`."""

from mlops.loop.serve import serve

app = serve("iris")
