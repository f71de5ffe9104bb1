"""Open Inference Protocol, version 2, over HTTP: the routes under `/v2`.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and, for tensors
as bytes, the binary tensor data extension that Triton's clients use unless told otherwise.

A model is a use case, by its name or by the name it is registered under. An inference is
translated into a batch of the friendly form and its answer back, so validation, log, idempotency
and limits are the same ones. Inputs come in either of two forms:

    a tensor per field, named like it, of shape [n] or [n, 1]
    one tensor `instances` of shape [n, fields], columns in the order of the metadata

The outputs are what the friendly form answers: the prediction and, for classes, label and
probabilities; then the ids that the log has them under, and the warnings, a JSON list a row. A
request's `id` is sent back and means no more: what makes a resend idempotent is the header
`Idempotency-Key`, as everywhere. `model_version` is the version that answered.
"""

from __future__ import annotations

import itertools
import math
import re
import struct
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from mlops.deploy import problems
from mlops.deploy.headers import Headers
from mlops.deploy.predictor import Champion
from mlops.deploy.reader import LONG_BODY, has_more_values, most_values, validator_of_long
from mlops.deploy.schemas import LARGEST_BATCH
from mlops.deploy.service import Service, reply_of
from mlops.usecase import UseCase

TOGETHER = "instances"
JSON_LENGTH = "inference-header-content-length"
CHARGE = "mlops.charge"
"""Where in the scope stands whom to tell how many rows were asked for."""
INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/[^/]+)?/infer")
MOST_SHOWN = 20
NUMBERS = {
    f"{kind}{bits}": np.dtype(f"<{letter}{bits // 8}")
    for kind, letter, sizes in (("FP", "f", (16, 32, 64)), ("INT", "i", (8, 16, 32, 64)))
    for bits in sizes
} | {f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)}


class Error(BaseModel):
    """Every error of the protocol has this shape."""

    error: str


class Ready(BaseModel):
    ready: bool


class Live(BaseModel):
    live: bool


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InputTensor(BaseModel):
    """Numbers of the given shape, flat or nested, in row-major order."""

    name: str = Field(max_length=200)
    shape: list[Annotated[int, Field(strict=True, ge=0, le=2**31)]] = Field(
        min_length=1, max_length=2
    )
    datatype: str = Field(max_length=20)
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class RequestedOutput(BaseModel):
    name: str = Field(max_length=200)
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """One or several rows, as a tensor per field or all in one."""

    id: str | None = Field(None, max_length=200, description="Sent back, and no more")
    parameters: dict[str, Any] = {}
    inputs: list[InputTensor] = Field(min_length=1, max_length=100)
    outputs: list[RequestedOutput] = Field([], max_length=100, description="All, unless told")


class OutputTensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: list[Any] = []


class InferAnswer(BaseModel):
    """A tensor for each part of the answer; `model_version` is who gave it."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


REQUEST = TypeAdapter(InferRequest)
VALIDATE_LONG = validator_of_long(InferRequest)
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "Named by tensor, field, value and limit"},
    401: {"model": Error, "description": "An API key is needed, and none that is known came"},
    403: {"model": Error, "description": "The API key has another role, or use case"},
    404: {"model": Error, "description": "No such model, or not this version of it"},
    413: {"model": Error, "description": "The body is too large"},
    429: {"model": Error, "description": "Too many requests: wait as Retry-After says"},
    503: {"model": Error, "description": "No model yet, or no log: try again later"},
}

UNREADY: dict[int | str, dict[str, Any]] = {
    503: {"model": Ready, "description": "It cannot answer now"}
}


class ProtocolError(HTTPException):
    """What is wrong with a request; the message is the answer."""

    def __init__(self, says: str, status: int = 400) -> None:
        super().__init__(status, says)


def by_name(services: Sequence[Service]) -> dict[str, Service]:
    """Return the services by what the protocol calls a model: registered name, or use case."""
    models = {service.use_case.model_name: service for service in services}
    return models | {service.use_case.name: service for service in services}


def add_inference_protocol(app: FastAPI, services: Sequence[Service], version: str) -> None:
    """Add the routes under `/v2`, which speak for all services."""
    models = by_name(services)

    def find(model: str, wanted: str | None = None) -> Service:
        service = models.get(model)
        if service is None:
            known = ", ".join(service.use_case.name for service in services)
            raise ProtocolError(f"there is no such model; there are: {known}", 404)
        if wanted is not None and wanted not in _versions(service):
            answering = ", ".join(_versions(service)) or "none"
            raise ProtocolError(f"of this model only version {answering} answers now", 404)
        return service

    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    _add_server_routes(router, services, version)
    _add_model_routes(router, find, _request_body(services[0].use_case))
    app.include_router(router)


def _add_server_routes(router: APIRouter, services: Sequence[Service], version: str) -> None:
    async def server() -> Any:
        """Name this server and what it offers besides the protocol."""
        return {
            "name": "mlops-housing-pipeline",
            "version": version,
            "extensions": ["binary_tensor_data"],
        }

    async def live() -> Any:
        """Answer as long as the process does."""
        return {"live": True}

    async def ready() -> Any:
        """Say whether all models can answer."""
        return _ready(services)

    _add(router, "", server, ServerMetadata)
    _add(router, "/health/live", live, Live)
    _add(router, "/health/ready", ready, Ready, UNREADY)


def _add_model_routes(
    router: APIRouter, find: Callable[..., Service], request_body: dict[str, Any]
) -> None:
    async def metadata(model: str) -> Any:
        """Name inputs and outputs, their types and shapes."""
        return _metadata(find(model))

    async def metadata_of(model: str, version: str) -> Any:
        """Name inputs and outputs, their types and shapes."""
        return _metadata(find(model, version))

    async def model_ready(model: str) -> Any:
        """Say whether a model can answer."""
        return _ready([find(model)])

    async def version_ready(model: str, version: str) -> Any:
        """Say whether a version answers."""
        return _ready([find(model, version)])

    async def infer(model: str, request: Request) -> Response:
        """Validate, predict, record, respond."""
        return await _infer(find(model), model, request)

    async def infer_by(model: str, version: str, request: Request) -> Response:
        """Validate, predict, record, respond: by this version, if it is open."""
        service = find(model, version)
        return await _infer(service, model, request, service.models().get(version))

    unknown: dict[int | str, dict[str, Any]] = {404: ERRORS[404]}
    for path, about, ready, answer in (
        ("/models/{model}", metadata, model_ready, infer),
        ("/models/{model}/versions/{version}", metadata_of, version_ready, infer_by),
    ):
        _add(router, path, about, ModelMetadata, unknown)
        _add(router, f"{path}/ready", ready, Ready, unknown | UNREADY)
        _add(
            router,
            f"{path}/infer",
            answer,
            InferAnswer,
            ERRORS,
            methods=["POST"],
            openapi_extra={"requestBody": request_body},
        )


def _add(
    router: APIRouter,
    path: str,
    endpoint: Callable[..., Any],
    answer: type[BaseModel],
    errors: dict[int | str, dict[str, Any]] | None = None,
    **more: Any,
) -> None:
    router.add_api_route(
        path,
        endpoint,
        response_model=answer,
        responses=errors,
        operation_id=f"v2_{endpoint.__name__}",
        **more,
    )


def _versions(service: Service) -> list[str]:
    """Return the versions that are open, the champion first."""
    return list(dict.fromkeys(str(model.version) for model in service.models().values()))


def _ready(services: Sequence[Service]) -> JSONResponse:
    ready = not any(service.not_ready() for service in services)
    return JSONResponse({"ready": ready}, 200 if ready else 503)


def _metadata(service: Service) -> dict[str, Any]:
    outputs = _outputs(service.use_case)
    return {
        "name": service.use_case.name,
        "versions": _versions(service),
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": field, "datatype": "FP64", "shape": [-1]} for field in service.use_case.fields
        ],
        "outputs": [
            {"name": name, "datatype": kind, "shape": [-1, *more]}
            for name, (kind, more) in outputs.items()
        ],
    }


def _outputs(use_case: UseCase) -> dict[str, tuple[str, list[int]]]:
    """Return name, datatype and the dimensions after the first of each output."""
    target = use_case.target
    found: dict[str, tuple[str, list[int]]] = {target.name: ("FP64", [])}
    if target.labels:
        found[target.name] = ("INT64", [])
        found["predicted_label"] = ("BYTES", [])
        found["probabilities"] = ("FP64", [len(target.labels)])
    return {**found, "prediction_id": ("BYTES", []), "warnings": ("BYTES", [])}


async def _infer(
    service: Service, model: str, request: Request, by: Champion | None = None
) -> Response:
    body, headers = await request.body(), request.headers.raw
    path = request.url.path
    arrived = time.perf_counter()
    try:
        asked, tail = _parse(body, request.headers.get(JSON_LENGTH), len(service.use_case.fields))
        rows = _rows(asked, tail, service.use_case)
        _check_outputs(asked, service.use_case)
    except ProtocolError as error:
        detail = problems.problem("inference_protocol", error.detail, ("body",))
        status = error.status_code
        refused = await reply_of(partial(service.refuse, status, detail, body, headers, path))
        service.observe(refused, time.perf_counter() - arrived)
        raise
    reply = await _as_batch(service, rows, headers, path, arrived, by)
    request.scope[CHARGE](len(rows))
    return _answer(service.use_case, model, asked, reply)


async def _as_batch(
    service: Service,
    rows: np.ndarray,
    headers: Headers,
    path: str,
    arrived: float,
    by: Champion | None,
) -> list[dict[str, Any]]:
    """Send rows (n, fields) the friendly way; return the answers."""
    fields = service.use_case.fields
    instances = [dict(zip(fields, row, strict=True)) for row in rows.tolist()]
    body = orjson.dumps({TOGETHER: instances})
    reply = await reply_of(partial(service.predict_batch, body, headers, path, model=by))
    service.observe(reply, time.perf_counter() - arrived)
    content = orjson.loads(reply.body)
    if reply.status != 200:
        says = "; ".join(_said(item) for item in content["detail"][:MOST_SHOWN])
        # The protocol has one code for whatever is wrong with a request.
        raise ProtocolError(says, 400 if reply.status == 422 else reply.status)
    answers: list[dict[str, Any]] = content["predictions"]
    return answers


def _said(item: dict[str, Any]) -> str:
    row = [part for part in item["loc"] if isinstance(part, int)]
    return f"row {row[0]}: {item['msg']}" if row else str(item["msg"])


def _parse(body: bytes, length: str | None, fields: int) -> tuple[InferRequest, bytes]:
    """Return the request and the bytes of binary tensors after it."""
    if length is not None and not (length.isdecimal() and int(length[:20]) <= len(body)):
        raise ProtocolError(f"{JSON_LENGTH} must be a number of bytes, at most the body's")
    end = len(body) if length is None else int(length)
    head, most = body[:end], most_values(fields, LARGEST_BATCH)
    if has_more_values(head, most):
        raise ProtocolError(
            f"the JSON has more than {most} commas, brackets and braces: send at most "
            f"{LARGEST_BATCH} rows of {fields} numbers, or tensors as binary data"
        )
    validate = REQUEST.validate_json if end < LONG_BODY else VALIDATE_LONG
    try:
        return validate(head), body[end:]
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        says = [f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in found]
        # What cannot be encoded was sent that way, in a name.
        text = "; ".join(says[:MOST_SHOWN]).encode("utf-8", "replace").decode()
        raise ProtocolError(text[:2_000]) from None


def _rows(asked: InferRequest, tail: bytes, use_case: UseCase) -> np.ndarray:
    """Return the values as rows (n, fields), fields in their order."""
    tensors: dict[str, np.ndarray] = {}
    for tensor in asked.inputs:
        if tensor.name in tensors:
            raise ProtocolError(f"the input {_short(tensor.name)} is given more than once")
        tensors[tensor.name], tail = _values(tensor, tail)
    if tail:
        raise ProtocolError(f"{len(tail)} bytes follow the last binary tensor")
    fields = use_case.fields
    rows = _together(tensors, fields) if TOGETHER in tensors else _by_field(tensors, fields)
    for row, column in np.argwhere(~np.isfinite(rows)).tolist()[:1]:
        value = rows[row, column]
        raise ProtocolError(f"row {row}: {fields[column]} must be a finite number, got {value}")
    return rows


def _together(tensors: dict[str, np.ndarray], fields: tuple[str, ...]) -> np.ndarray:
    rows = tensors[TOGETHER]
    if len(tensors) > 1 or rows.ndim != 2 or rows.shape[1] != len(fields):
        raise ProtocolError(
            f"{TOGETHER} must be the only input, of shape [n, {len(fields)}], its columns in the "
            f"order {', '.join(fields)}"
        )
    return rows


def _by_field(tensors: dict[str, np.ndarray], fields: tuple[str, ...]) -> np.ndarray:
    if missing := [field for field in fields if field not in tensors]:
        raise ProtocolError(
            f"the input {missing[0]} is missing: send a tensor for each of {', '.join(fields)}; "
            f"or all in one, {TOGETHER}, of shape [n, {len(fields)}]"
        )
    if surplus := sorted(set(tensors) - set(fields)):
        raise ProtocolError(
            f"{_short(surplus[0])} is not an input; the inputs are {', '.join(fields)}"
        )
    if any(tensor.ndim == 2 and tensor.shape[1] != 1 for tensor in tensors.values()):
        raise ProtocolError("the tensor of a field must have the shape [n] or [n, 1]")
    if len({len(tensor) for tensor in tensors.values()}) > 1:
        raise ProtocolError("the tensors of the fields differ in their number of rows")
    return np.column_stack([tensors[field].ravel() for field in fields])


def _values(tensor: InputTensor, tail: bytes) -> tuple[np.ndarray, bytes]:
    """Return a tensor's values as doubles in its shape, and the bytes that belong to the next."""
    name, kind = _short(tensor.name), NUMBERS.get(tensor.datatype)
    if kind is None:
        raise ProtocolError(f"{name} must have one of the datatypes {', '.join(NUMBERS)}")
    count = math.prod(tensor.shape)
    if tensor.shape[0] > LARGEST_BATCH:
        raise ProtocolError(f"{name} may have at most {LARGEST_BATCH} rows, got {tensor.shape[0]}")
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        flat = _numbers(name, tensor)
    elif tensor.data is not None:
        raise ProtocolError(f"{name} has both data and binary data")
    elif size != count * kind.itemsize or type(size) is not int or size > len(tail):
        raise ProtocolError(
            f"{name} of {tensor.datatype} and shape {tensor.shape} takes "
            f"{count * kind.itemsize} bytes after the JSON, which ends where {JSON_LENGTH} says"
        )
    else:
        flat = np.frombuffer(tail, kind, count).astype(np.float64)
        tail = tail[size:]
    if flat.size != count:
        raise ProtocolError(f"{name} of shape {tensor.shape} must hold {count} numbers")
    return flat.reshape(tensor.shape), tail


def _numbers(name: str, tensor: InputTensor) -> np.ndarray:
    data = tensor.data
    if data is None:
        raise ProtocolError(f"{name} has neither data nor binary_data_size")
    if len(tensor.shape) == 2 and data and all(type(row) is list for row in data):
        if [len(row) for row in data] != [tensor.shape[1]] * tensor.shape[0]:
            raise ProtocolError(f"{name} must hold {tensor.shape[0]} lists of {tensor.shape[1]}")
        data = list(itertools.chain.from_iterable(data))
    if not {type(value) for value in data} <= {int, float}:
        raise ProtocolError(f"{name} must hold numbers, flat or in one list a row")
    try:
        return np.array(data, dtype=np.float64)
    except OverflowError:
        raise ProtocolError(f"{name} holds a number that no double can") from None


def _check_outputs(asked: InferRequest, use_case: UseCase) -> None:
    known = _outputs(use_case)
    for output in asked.outputs:
        if output.name not in known:
            raise ProtocolError(
                f"{_short(output.name)} is not an output; the outputs are {', '.join(known)}"
            )


def _answer(
    use_case: UseCase, model: str, asked: InferRequest, answers: list[dict[str, Any]]
) -> Response:
    """Put answers into tensors: those asked for, as bytes where that was asked for."""
    kinds = _outputs(use_case)
    wanted = {output.name: output.parameters for output in asked.outputs}
    all_binary = asked.parameters.get("binary_data_output") is True
    outputs, parts = [], []
    for name in wanted or kinds:
        kind, more = kinds[name]
        values = [_column(answer[name]) for answer in answers]
        tensor: dict[str, Any] = {"name": name, "datatype": kind, "shape": [len(answers), *more]}
        if wanted.get(name, {}).get("binary_data", all_binary) is True:
            part = _as_bytes(kind, values)
            parts.append(part)
            tensor["parameters"] = {"binary_data_size": len(part)}
        else:
            tensor["data"] = list(itertools.chain.from_iterable(values)) if more else values
        outputs.append(tensor)
    content = {
        "model_name": model,
        "model_version": str(answers[0]["model_version"]),
        **({} if asked.id is None else {"id": asked.id}),
        "outputs": outputs,
    }
    head = orjson.dumps(content)
    if not parts:
        return Response(head, media_type="application/json")
    return Response(
        b"".join([head, *parts]),
        media_type="application/octet-stream",
        headers={JSON_LENGTH: str(len(head))},
    )


def _column(value: Any) -> Any:
    """Return what stands in a tensor for a part of an answer."""
    if isinstance(value, dict):
        return list(value.values())
    return orjson.dumps(value).decode() if isinstance(value, list) else value


def _as_bytes(kind: str, values: list[Any]) -> bytes:
    if kind != "BYTES":
        return np.array(values, dtype=NUMBERS[kind]).tobytes()
    texts = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _short(name: str) -> str:
    return name.encode("utf-8", "replace").decode()[:100]


def _request_body(use_case: UseCase) -> dict[str, Any]:
    """Return OpenAPI's words for the body, with both forms as examples."""
    row = list(next(iter(use_case.examples.values())).values())
    each = [
        {"name": name, "shape": [1], "datatype": "FP64", "data": [value]}
        for name, value in zip(use_case.fields, row, strict=True)
    ]
    together = {"name": TOGETHER, "shape": [1, len(row)], "datatype": "FP64", "data": row}
    schema = InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    parts = schema.pop("$defs")
    for name, part in parts.items():
        schema = _inline(schema, name, part)
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": schema,
                "examples": {
                    "a tensor per field": {"value": {"inputs": each}},
                    "one tensor": {"value": {"id": "42", "inputs": [together]}},
                },
            }
        },
    }


def _inline(schema: Any, name: str, part: Any) -> Any:
    """Put `part` in the place of references to it: the document does not know its name."""
    if isinstance(schema, dict):
        if schema.get("$ref", "").endswith(f"/{name}"):
            return part
        return {key: _inline(value, name, part) for key, value in schema.items()}
    return [_inline(value, name, part) for value in schema] if isinstance(schema, list) else schema
