"""The web application over one or several use cases.

It is a FastAPI application, which documents every route and answers all but the hot ones. The hot
routes are answered before FastAPI's middleware and routing, by the very handler that FastAPI would
call: it only saves the way there, which is most of the cost of a small prediction.

Who may come in is asked at two doors, of the same `Access`: `App.__call__`, and for hot routes
`HotRoute.admit`, at which the server's protocol (`protocol.py`) knocks too.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import logging
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import fastapi_offline
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from mlops.deploy import explained, exposition, problems
from mlops.deploy.access import Access, Refused
from mlops.deploy.admin import Admin, add_admin
from mlops.deploy.alerts import Alerts, add_alerts
from mlops.deploy.documented import HEADERS, REFUSALS, add_post, headers_of
from mlops.deploy.drift import add_drift
from mlops.deploy.feedback_routes import add_feedback
from mlops.deploy.headers import Headers
from mlops.deploy.inference_protocol import CHARGE, INFER, add_inference_protocol, by_name
from mlops.deploy.limits import SECURITY_HEADERS, Limits
from mlops.deploy.named import NAMED, add_named
from mlops.deploy.query import parameters, with_intervals
from mlops.deploy.schemas import (
    ErrorAnswer,
    PredictionAnswer,
    answer_model,
    batch_answer_model,
    explained_model,
)
from mlops.deploy.service import Reply, Respond, Service, reply_of
from mlops.errors import MlopsError, NoIntervalError, NotExplainedError

GUARD: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorAnswer, "description": "An API key is needed, and none that is known came"},
    403: {"model": ErrorAnswer, "description": "The API key has another role, or use case"},
    429: {"model": ErrorAnswer, "description": "Too many requests: wait as Retry-After says"},
}
NOT_EXPLAINED: dict[int | str, dict[str, Any]] = {
    409: {
        "model": ErrorAnswer,
        "description": "The version that answers holds nothing to do it by",
    },
}
ASSETS = "/docs/assets"
VARY = {"vary": "accept"}
OPEN_PATHS = ("", "/health/live", "/health/ready")
SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key: `mlops keys add`"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
PAGE_POLICY = (
    "default-src 'self'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)

log = logging.getLogger("uvicorn.error")

Handler = Callable[[bytes, Headers, str, Respond], None]
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class App(FastAPI):
    """FastAPI with a guarded door and, behind it, a short way to the hot routes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(docs_url=None, redoc_url=None, **settings)
        self.hot: dict[str, HotRoute] = {}
        self.access = Access()
        self.limits = Limits()
        self.use_cases: tuple[str, ...] = ()
        self.models: dict[str, Service] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope["root_path"])
        route = self.hot.get(path) if scope["method"] == "POST" else None
        if route is None:
            client, refused = self.access.check(scope, path, self._speaks_for(path))
            if refused:
                self.count(scope, refused.status)
                await _send(send, _refusal(refused, path))
                return
            scope[CHARGE] = functools.partial(self.access.charge, client)
            await self._answer_by_fastapi(scope, path, receive, send)
            return
        client, refusal = route.admit(scope) if self.access.on else ("", None)
        if refusal:
            await _send(send, refusal)
            return
        rows = await route.answer(scope, receive, send)
        if client:
            self.access.charge(client, rows)

    def count(self, scope: Scope, status: int) -> None:
        """Count a prediction request that was refused at the door; others are not counted."""
        if scope["method"] == "POST":
            path = scope["path"].removeprefix(scope["root_path"])
            model = INFER.fullmatch(path) or NAMED.fullmatch(path)
            route = self.hot.get(path)
            if model:
                service = self.models.get(model[1] or self.use_cases[0])
            else:
                service = route.service if route else None
            if service:
                service.count(status)

    async def _answer_by_fastapi(
        self, scope: Scope, path: str, receive: Receive, send: Send
    ) -> None:
        """Let FastAPI answer, with the whole body in hand and never more than is allowed."""
        if scope["method"] not in {"GET", "HEAD", "OPTIONS"}:
            largest = self.limits.body
            body = await _body(receive, largest)
            if body is None:
                return
            if len(body) > largest:
                await _send(send, Reply(413, problems.for_path(path, _too_large(largest))))
                return
            receive = _replay(body, receive)

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                more = [pair for pair in SECURITY_HEADERS if pair[0] not in given]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        await super().__call__(scope, receive, send_secured)

    def openapi(self) -> dict[str, Any]:
        """Say in the document also how a key is sent. It is needed only once there are any."""
        document = super().openapi()
        document.setdefault("components", {})["securitySchemes"] = SECURITY_SCHEMES
        document["security"] = [{}, {"bearer": []}, {"header": []}]
        return document

    def _speaks_for(self, path: str) -> str | None:
        """Return the use case that a route is about; None if it is about several."""
        if len(self.use_cases) == 1 or path == "/explain":  # root's is the first one's
            return self.use_cases[0]
        name = path.removeprefix("/v2/models").split("/", 2)[1:2]
        known = self.models.get(name[0]) if name else None  # by the model's registered name too
        return known.use_case.name if known else None


class HotRoute:
    """A POST route with a raw handler: body and headers in, status and JSON out.

    `begin` is the one way in, for the server's protocol (`protocol.py`), for this application's
    short way, and for FastAPI's.
    """

    def __init__(
        self, app: App, path: str, service: Service, handler: Handler, *, explains: bool = False
    ) -> None:
        self.app = app
        self.path = path
        self.service = service
        self.handler = handler
        self.explains = explains

    def admit(self, scope: Scope) -> tuple[str, Reply | None]:
        """Return who asks, by what is counted, and the answer if they are refused: see `Access`."""
        client, refused = self.app.access.check(scope, self.path, self.service.use_case.name)
        if not refused:
            return client, None
        self.service.count(refused.status)
        return client, _refusal(refused, self.path)

    def begin(self, body: bytes, size: int, headers: Headers, respond: Respond) -> None:
        """Answer a request by calling `respond` once, now or later. Raises nothing.

        Whoever calls it tells `service.observe` of the answer. Of a body of too large a `size`
        only the start need be there.
        """
        largest = self.app.limits.body
        if size <= largest:
            self.handler(body, headers, self.path, respond)
        else:
            detail = _too_large(largest)
            self.service.refuse(413, detail, body, headers, self.path, respond)

    async def reply(self, body: bytes, headers: Headers, query: bytes = b"") -> Reply:
        def begin(respond: Respond) -> None:
            arrived = time.perf_counter()

            def observed(reply: Reply) -> None:
                respond(reply)
                self.service.observe(reply, time.perf_counter() - arrived)

            self.begin(body, len(body), headers, observed)

        async def predicted() -> Reply:
            return await reply_of(begin)

        async def answered() -> Reply:
            return await with_intervals(self.service, query, predicted)

        if self.explains and b"explain" in query:
            return await explained.predict(self.service, body, query, answered)
        return await answered()

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Answer a request; return how many rows it asked for, as far as that came out."""
        body = await _body(receive, self.app.limits.body)
        if body is None:
            return 0  # the client went away before it had finished asking
        reply = await self.reply(body, scope["headers"], scope["query_string"])
        await _send(send, reply)
        return reply.rows


def build_app(
    services: Sequence[Service],
    *,
    lifespan: Lifespan,
    version: str,
    admin: Admin | None = None,
    alerts: Alerts | None = None,
    pages: APIRouter | None = None,
) -> App:
    """Build the application: one use case at the root, or several, each under its name.

    With several, the root speaks for all, and root `/predict` is the first one's. `admin` is
    what `/admin/…` does, and `alerts` what `/alerts` lists; without them there is no such
    route. `pages` are those of the dashboard, and what they ask for.
    """
    combined = len(services) > 1
    first = services[0]
    app = App(
        title="mlops-housing-pipeline" if combined else first.use_case.title,
        description="Every prediction is validated, logged, and names the version that made it. "
        + " ".join(service.use_case.description for service in services),
        version=version,
        lifespan=lifespan,
        responses=GUARD,
    )
    app.models = by_name(services)
    app.use_cases = tuple(service.use_case.name for service in services)
    for service in services if combined else ():
        _add_routes(app, service, f"/{service.use_case.name}", service.use_case.title)
    _add_routes(
        app, first, "", "all use cases" if combined else first.use_case.title, everyone=services
    )
    add_inference_protocol(app, services, version)
    app.access.open |= {"/v2", "/v2/health/live", "/v2/health/ready"}
    if admin:
        add_admin(app, admin)
    if alerts:
        add_alerts(app, alerts, app.use_cases)
    if pages:
        app.access.open.add("/dashboard")
        app.include_router(pages)
    _add_docs(app)
    _add_error_handlers(app)
    return app


def _add_routes(
    app: App, service: Service, prefix: str, tag: str, *, everyone: Sequence[Service] = ()
) -> None:
    """Add a use case's routes. At the root, health and metrics speak for `everyone`."""
    router = APIRouter(prefix=prefix, tags=[tag])
    app.access.open |= {prefix + path or "/" for path in OPEN_PATHS}
    speaks_for = tuple(everyone) or (service,)
    use_case = service.use_case
    answers = answer_model(use_case)
    batch_answers = batch_answer_model(use_case, answers)
    examples = {
        name: {"summary": name, "value": value} for name, value in use_case.examples.items()
    }
    beside = parameters(use_case)
    _add_hot_route(
        app,
        router,
        HotRoute(app, f"{prefix}/predict", service, service.predict, explains=True),
        summary=f"{use_case.title}: predict for one request",
        body=service.reader.request_model,
        answer=answers,
        examples=examples,
        parameters=[*HEADERS, explained.PARAMETER, *beside],
        refusals={**REFUSALS, **NOT_EXPLAINED},
    )
    add_post(
        router,
        "/explain",
        lambda request, body: explained.explain(service, body),
        summary=f"{use_case.title}: which field adds how much to the answer",
        description="Validate, predict, explain, respond. Nothing is recorded.",
        body=service.reader.request_model,
        answer=explained_model(use_case),
        examples=examples,
        refusals={**REFUSALS, **NOT_EXPLAINED},
    )
    _add_hot_route(
        app,
        router,
        HotRoute(app, f"{prefix}/predict/batch", service, service.predict_batch),
        summary=f"{use_case.title}: predict for many, all of them or none",
        body=service.reader.batch_model,
        answer=batch_answers,
        examples={
            "all examples": {
                "summary": "all examples",
                "value": {"instances": list(use_case.examples.values())},
            }
        },
        parameters=[*HEADERS, *beside],
        refusals={**REFUSALS, **NOT_EXPLAINED},
    )

    async def health() -> dict[str, Any]:
        """Say whether predictions are being answered, by which version, and if not, why."""
        return _health(speaks_for)

    async def live() -> dict[str, str]:
        """Answer as long as the process does."""
        return {"status": "alive"}

    async def ready() -> JSONResponse:
        """Answer 200 when predictions can be answered and logged, else 503 with the reason."""
        answer = _health(speaks_for)
        return JSONResponse(answer, 200 if answer["status"] == "healthy" else 503)

    async def metrics(request: Request) -> Response:
        """Count requests and predictions, and how long answers took. The same after a restart.

        JSON, or for `Accept: text/plain` or `application/openmetrics-text` what Prometheus reads.
        """
        scrapes = await asyncio.gather(*(service.metrics() for service in speaks_for))
        accepted = request.headers.get("accept", "")
        if exposition.wants_text(accepted):
            content, content_type = exposition.as_text(scrapes, accepted, app.version)
            return Response(content, media_type=content_type, headers=VARY)
        of_one = exposition.as_json(scrapes[0]) if len(scrapes) == 1 else None
        return JSONResponse(of_one or exposition.together(scrapes), headers=VARY)

    def prediction(
        prediction_id: str, explain: bool = False, interval: bool = False
    ) -> dict[str, Any]:
        """Return a logged prediction, and the chain from its version to the data it learnt from.

        `explain=true` adds why that version answered so, `interval=true` how far off it may be.
        """
        for one in speaks_for:
            if found := one.prediction(prediction_id):
                more = {"explanation": one.explain_logged(prediction_id)} if explain else {}
                return {**found, **more, **(_interval(one, prediction_id) if interval else {})}
        raise HTTPException(404, "no prediction with this id is in the log")

    if not everyone[1:]:  # the root of several has no one model to speak of
        add_named(router, service, answers, batch_answers, examples)
        add_drift(router, service)
    router.add_api_route(
        "/predictions/{prediction_id}",
        prediction,
        methods=["GET"],
        summary="A prediction and its lineage",
        response_model=PredictionAnswer,
        response_model_exclude_unset=True,
        responses={
            404: {"model": ErrorAnswer, "description": "No such prediction is in the log"},
            **NOT_EXPLAINED,
            422: {"model": ErrorAnswer, "description": "Not an id"},
            503: {"model": ErrorAnswer, "description": "The log cannot be read"},
        },
    )
    add_feedback(router, speaks_for)
    root = prefix or "/"
    router.add_api_route(root if not prefix else "", health, methods=["GET"], summary="Health")
    router.add_api_route("/health/live", live, methods=["GET"], summary="Liveness")
    router.add_api_route(
        "/health/ready",
        ready,
        methods=["GET"],
        summary="Readiness",
        responses={503: {"description": "Predictions cannot be answered now; `message` says why"}},
    )
    router.add_api_route(
        "/metrics",
        metrics,
        methods=["GET"],
        summary="Metrics",
        responses={
            200: {
                "description": "As JSON, or in a text format of Prometheus",
                "content": {
                    "application/json": {"schema": {"type": "object"}},
                    "text/plain": {"schema": {"type": "string"}},
                    "application/openmetrics-text": {"schema": {"type": "string"}},
                },
            },
            503: {"model": ErrorAnswer, "description": "The log cannot be read"},
        },
    )
    app.include_router(router)


def _interval(service: Service, prediction_id: str) -> dict[str, Any]:
    return {"interval": service.intervals_logged([prediction_id])[0]}


def _add_hot_route(
    app: App,
    router: APIRouter,
    hot: HotRoute,
    *,
    parameters: Sequence[dict[str, Any]] = HEADERS,
    **documented: Any,
) -> None:
    """Document a route with FastAPI and let both ways to it end in the same handler."""
    add_post(
        router,
        hot.path.removeprefix(router.prefix),
        lambda request, body: hot.reply(body, request.headers.raw, request.scope["query_string"]),
        parameters=parameters,
        **documented,
    )
    app.hot[hot.path] = hot


def _health(services: Sequence[Service]) -> dict[str, Any]:
    if len(services) == 1:
        return services[0].health()
    each = {service.use_case.name: service.health() for service in services}
    ill = [name for name, health in each.items() if health["status"] != "healthy"]
    return {
        "status": "unavailable" if ill else "healthy",
        "message": "; ".join(f"{name}: {each[name]['message']}" for name in ill)
        or f"{' and '.join(each)} are answering",
        "use_cases": each,
    }


def _add_docs(app: App) -> None:
    """Serve the API documentation with its scripts, so that it works without a network."""
    folder = f"{fastapi_offline.__path__[0]}/static"
    app.mount(ASSETS, StaticFiles(directory=folder, check_dir=False))

    async def docs() -> Response:
        page = get_swagger_ui_html(
            openapi_url="openapi.json",
            title=f"{app.title} - try the API",
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon.png",
        )
        return secured_page(page)

    async def redoc() -> Response:
        page = get_redoc_html(
            openapi_url="openapi.json",
            title=f"{app.title} - API reference",
            redoc_js_url="docs/assets/redoc.standalone.js",
            redoc_favicon_url="docs/assets/favicon.png",
            with_google_fonts=False,
        )
        return secured_page(page)

    app.access.open |= {"/docs", "/redoc", "/openapi.json"}
    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)
    app.add_api_route("/redoc", redoc, methods=["GET"], include_in_schema=False)


def _add_error_handlers(app: App) -> None:
    async def http_error(request: Request, error: HTTPException) -> Response:
        detail = problems.problem(f"http_{error.status_code}", str(error.detail), ("path",))
        headers = dict(error.headers or {})
        if error.status_code == 503:
            headers["retry-after"] = problems.RETRY_AFTER_SECONDS
        body = problems.for_path(_path(request), detail)
        return Response(body, error.status_code, headers, "application/json")

    async def invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
        detail = [{k: item[k] for k in ("type", "loc", "msg")} for item in error.errors()]
        return JSONResponse({"detail": detail}, 422)

    async def unavailable(request: Request, error: MlopsError) -> JSONResponse:
        # What went wrong names files of this machine: the server's own log gets it, clients do not.
        log.error("%s could not be answered: %s", _path(request), error)
        detail = problems.problem(
            "unavailable", "the prediction log, or the state, cannot be read: try again"
        )
        headers = {"retry-after": problems.RETRY_AFTER_SECONDS}
        return JSONResponse({"detail": detail}, 503, headers)

    async def not_sealed(_: Request, error: MlopsError) -> JSONResponse:
        return JSONResponse({"detail": problems.from_error(error)}, error.status)

    async def internal_error(request: Request, _: Exception) -> Response:
        body = problems.for_path(_path(request), problems.internal_error())
        return Response(body, 500, media_type="application/json")

    def _path(request: Request) -> str:
        return str(request.scope["path"].removeprefix(request.scope["root_path"]))

    app.add_exception_handler(HTTPException, http_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, invalid_request)  # type: ignore[arg-type]
    app.add_exception_handler(MlopsError, unavailable)  # type: ignore[arg-type]
    app.add_exception_handler(NotExplainedError, not_sealed)  # type: ignore[arg-type]
    app.add_exception_handler(NoIntervalError, not_sealed)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, internal_error)


def _too_large(largest: int) -> list[dict[str, Any]]:
    says = f"the body is larger than {largest:,} bytes"
    return problems.problem("too_large", says, ("body",))


def _refusal(refused: Refused, path: str) -> Reply:
    headers: list[tuple[bytes, bytes]] = []
    if refused.retry_after is not None:
        headers.append((b"retry-after", str(refused.retry_after).encode()))
    if refused.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="mlops"'))
    detail = problems.problem(refused.kind, refused.says, ("header",))
    body = problems.for_path(path, detail)
    return Reply(refused.status, body, headers=tuple(headers))


def secured_page(page: HTMLResponse) -> HTMLResponse:
    """Let a page run its own scripts, named by their digests, and nobody else's."""
    scripts = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    page.headers["content-security-policy"] = PAGE_POLICY.format(scripts=allowed)
    return page


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body at once, and then what `receive` gives."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


async def _body(receive: Receive, largest: int) -> bytes | None:
    """Read the body, a little past what is allowed; None if the client disconnects."""
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body"):
        return body
    parts, size = [body], len(body)
    while message["type"] == "http.request" and message.get("more_body"):
        message = await receive()
        if size <= largest:
            parts.append(message.get("body", b""))
            size += len(parts[-1])
    return None if message["type"] == "http.disconnect" else b"".join(parts)


async def _send(send: Send, reply: Reply) -> None:
    await send(
        {"type": "http.response.start", "status": reply.status, "headers": headers_of(reply)}
    )
    await send({"type": "http.response.body", "body": reply.body})
