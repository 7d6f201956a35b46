"""The routes of `bld serve`."""

import base64
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from bld.apps.body import Limited
from bld.apps.server.form import Order, read_order
from bld.apps.server.gate import Guarded, Hurried, Logged
from bld.apps.server.openapi import described
from bld.apps.server.problems import ApiError, answer
from bld.apps.server.service import Editors, Service
from bld.apps.server.settings import Settings
from bld.apps.server.work import Finished, Partial
from bld.errors import BldError

READ_BY_CLIENTS = ("retry-after", "x-request-id", "x-should-retry")  # of an answer's headers

USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


def create_app(devices: Sequence[Editors], settings: Settings) -> FastAPI:
    """The application for models that are loaded: for each device, the same names."""
    service = Service(devices, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.jobs.close()
        service.results.close()

    app = FastAPI(title="Blended Latent Diffusion", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    for kind in (ApiError, BldError, ClientDisconnect, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer)
    _add_routes(app, service)
    described(app)
    return app


def served(app: FastAPI) -> ASGIApp:
    """The application behind its gate and the limits of bodies.

    Pages of other origins come before the gate: a browser asks without a key whether one may be sent, and
    reads no refusal that does not name the page.
    """
    service: Service = app.state.service
    settings = service.settings
    guarded: ASGIApp = Guarded(Limited(app, settings.max_body, settings.upload_timeout), settings)
    if settings.cors_origins:
        guarded = CORSMiddleware(
            guarded, allow_origins=list(settings.cors_origins), allow_methods=["GET", "POST"],
            allow_headers=["*"], expose_headers=READ_BY_CLIENTS,
        )  # fmt: skip
    return Logged(Hurried(guarded, settings.answer_timeout), service.measures)


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/images/edits", response_class=JSONResponse)
    async def edits(request: Request) -> Response:
        """Edit a photograph where the mask is transparent, as the prompt says; the best picture first."""
        return await _edit(service, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models, as OpenAI lists them."""
        return {"object": "list", "data": [_model(service, name) for name in service.models]}

    @app.get("/v1/models/{id:path}")
    async def model(id: str) -> dict[str, Any]:
        """One model."""
        return _model(service, service.model(id))

    @app.get("/v1/results/{name}", response_class=FileResponse)
    async def result(name: str) -> FileResponse:
        """A picture that was returned as a URL."""
        found = service.results.find(name)
        if found is None:
            raise ApiError(404, "not_found", "no such result; its time may be over")
        return FileResponse(found[0], media_type=found[1], headers={"cache-control": "private"})

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """Whether edits are accepted: 503 once the server is shutting down."""
        ready = not service.jobs.closed
        return JSONResponse({"status": "ready" if ready else "shutting down"}, 200 if ready else 503)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(service.measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _edit(service: Service, request: Request) -> Response:
    """The answer to an edit: pictures, or the stream of them."""
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        came = kind[:64] or "no content type"
        raise ApiError(415, "unsupported_content_type", f"got {came}, expected multipart/form-data")
    async with request.form(max_files=8, max_fields=100) as form:
        order = await read_order(form, max_pixels=service.settings.max_pixels)
    if order.as_url and not service.settings.links:
        message = "response_format is url, which several replicas do not give; use b64_json"
        raise ApiError(400, "invalid_value", message, param="response_format")
    outcomes = service.outcomes(order, request)
    if not order.stream:
        async with aclosing(outcomes):
            done = await anext(outcomes)
            assert isinstance(done, Finished)  # previews come with a stream alone
            return JSONResponse(_answer(service, order, done, request))
    # The status is that of the first event: until then a refusal is still a refusal.
    return Stream(order, await anext(outcomes), outcomes)


class Stream(StreamingResponse):
    """The events of an order, which is over with them, however they end."""

    def __init__(
        self, order: Order, first: Partial | Finished, rest: AsyncGenerator[Partial | Finished]
    ) -> None:
        super().__init__(_events(order, first, rest), media_type="text/event-stream")
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest):
            await super().__call__(scope, receive, send)


async def _events(
    order: Order, first: Partial | Finished, rest: AsyncIterator[Partial | Finished]
) -> AsyncIterator[str]:
    """Server-sent events in OpenAI's names; one `completed` for each picture, the best first."""
    try:
        for event in _messages(order, first):
            yield event
        async for outcome in rest:
            for event in _messages(order, outcome):
                yield event
    except ApiError as error:
        yield _event("error", {"type": "error", **error.body()})


def _messages(order: Order, outcome: Partial | Finished) -> list[str]:
    common = {
        "created_at": int(time.time()), "size": f"{outcome.size[1]}x{outcome.size[0]}",
        "quality": order.quality, "background": order.background, "output_format": order.output_format,
    }  # fmt: skip
    if isinstance(outcome, Partial):
        name = "image_edit.partial_image"
        body = {**common, "b64_json": _base64(outcome.content), "partial_image_index": outcome.index}
        return [_event(name, {"type": name, **body})]
    name = "image_edit.completed"
    return [
        _event(name, {
            "type": name, **common, "b64_json": _base64(picture.content), "usage": USAGE,
            "seed": picture.seed, "score": picture.score, "notes": outcome.notes,
            "background_max_error": picture.background_max_error,
        })
        for picture in outcome.pictures
    ]  # fmt: skip


def _event(name: str, body: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(body)}\n\n"


def _answer(service: Service, order: Order, done: Finished, request: Request) -> dict[str, Any]:
    """The body that OpenAI's clients expect; what it does not know of is added by other names."""
    data = []
    for picture in done.pictures:
        if order.as_url:
            name = service.results.keep(picture.content, order.output_format)
            where = {"url": str(request.url_for("result", name=name))}
        else:
            where = {"b64_json": _base64(picture.content)}
        facts = {"seed": picture.seed, "score": picture.score}
        data.append({**where, **facts, "background_max_error": picture.background_max_error})
    return {
        "created": int(time.time()),
        "data": data,
        "background": "transparent" if done.transparent else "opaque",
        "output_format": order.output_format,
        "quality": order.quality,
        "size": f"{done.size[1]}x{done.size[0]}",
        "usage": USAGE,
        "notes": done.notes,
    }


def _model(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.started, "owned_by": "bld"}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
