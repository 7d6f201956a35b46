"""What every request passes: an id, the log, and the key."""

import asyncio
import hmac
import json
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bld.apps.server.measures import Measures
from bld.apps.server.problems import ApiError
from bld.apps.server.settings import Settings

log = logging.getLogger("bld.server")
OPEN = "/v1/results/"  # these names are secrets themselves


class JsonLines(logging.Formatter):
    """One JSON object a line, request id included. Prompts and pictures are never logged."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        kept = ("request_id", "method", "path", "status", "seconds")
        facts |= {name: getattr(record, name) for name in kept if hasattr(record, name)}
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts, ensure_ascii=False)


class Logged:
    """Gives each request its id, in the scope's state and in the answer, and logs and counts it."""

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self.app, self.measures = app, measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        asked = Headers(scope=scope).get("x-request-id", "")
        id = asked if re.fullmatch(r"[\w-]{1,64}", asked, re.ASCII) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = id
        status, started = 0, time.perf_counter()

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = id
            await send(message)

        try:
            await self.app(scope, receive, answered)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "none")
            self.measures.requests.labels(route, str(status)).inc()
            self.measures.latency.labels(route).observe(seconds)
            path = OPEN + "..." if scope["path"].startswith(OPEN) else scope["path"]
            facts: dict[str, Any] = {"method": scope["method"], "path": path, "status": status}
            log.info("request", extra={"request_id": id, "seconds": round(seconds, 4), **facts})


class Hurried:
    """Ends an answer of which a client does not take a message within `seconds`: it would wait for ever."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as limit:

                async def taken(message: Message) -> None:
                    limit.reschedule(loop.time() + self.seconds)
                    await send(message)
                    limit.reschedule(None)

                await self.app(scope, receive, taken)
        except TimeoutError:
            if not limit.expired():
                raise


class Guarded:
    """Refuses requests without a key, before anything of their bodies is read."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            self._check_key(scope["path"], Headers(scope=scope))
        except ApiError as error:
            return await error.response()(scope, receive, send)
        await self.app(scope, receive, send)

    def _check_key(self, path: str, headers: Headers) -> None:
        if not self.settings.api_keys or not path.startswith("/v1/") or path.startswith(OPEN):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip().encode() if scheme.lower() == "bearer" else b""
        # Every key is compared, each in constant time: how long it takes tells nothing.
        known = sum([hmac.compare_digest(key, known.encode()) for known in self.settings.api_keys])
        if not key or not known:
            raise ApiError(
                401, "invalid_api_key", "no such API key; send it as: Authorization: Bearer KEY",
                headers={"www-authenticate": "Bearer"},
            )  # fmt: skip
