"""The housing service: `uvicorn api.housing_api:app`."""

from mlops.loop.serve import serve

app = serve("housing")
