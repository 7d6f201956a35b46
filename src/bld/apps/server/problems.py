"""What went wrong, in the shape that OpenAI's clients read: {"error": {message, type, param, code}}."""

import re
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from bld.apps.server.fields import FORM
from bld.errors import BldError, InvalidInput

TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refusal with its status, and what the client can tell it by."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})
        if status in (500, 504):  # the clients would send the same work again
            self.headers["x-should-retry"] = "false"

    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer to the request."""
        return JSONResponse(self.body(), self.status, self.headers)


def hung_up() -> ApiError:
    """What nobody is there to be told: for the log and the measures."""
    return ApiError(499, "client_closed_request", "the client hung up")


def as_api_error(error: Exception) -> ApiError:
    """Any failure as what the client is told of it; of a defect it is told no more than that."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidInput):
        message = _in_fields(str(error))
        return ApiError(400, "invalid_value", message, param=_param(message))
    if isinstance(error, BldError):
        return ApiError(500, "edit_failed", _in_fields(str(error)))
    if isinstance(error, ClientDisconnect):  # before its body was there
        return hung_up()
    if isinstance(error, HTTPException):
        codes = {
            404: "not_found", 405: "method_not_allowed", 408: "upload_timeout", 413: "request_too_large",
        }  # fmt: skip
        code = codes.get(error.status_code, "bad_request")
        return ApiError(error.status_code, code, error.detail, headers=error.headers)
    if isinstance(error, RequestValidationError):
        return ApiError(400, "invalid_value", "; ".join(str(e["msg"]) for e in error.errors()))
    return ApiError(500, "internal_error", "the server failed; its log has the request's x-request-id")


async def answer(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's handler of everything that is raised."""
    return as_api_error(error).response()


def _in_fields(message: str) -> str:
    """A message that names flags of the command line, with the names of the form's fields."""
    return re.sub(r"--(no-)?([a-z]+(?:-[a-z]+)*)", _field, message)


def _field(flag: re.Match[str]) -> str:
    name = flag[2].replace("-", "_")
    return f"{name}=false" if flag[1] else name


def _param(message: str) -> str | None:
    """The field that a message is about: the first that it names."""
    return next((word for word in re.findall(r"[a-z_]+", message) if word in FORM), None)
