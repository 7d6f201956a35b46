"""The OpenAPI description: the form's fields from `fields`, the answers and the errors."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from bld.apps.server.fields import FORM

_TEXT, _INTEGER = {"type": "string"}, {"type": "integer"}
_NULLABLE = {"type": ["string", "null"]}

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": _TEXT, "type": _TEXT, "param": _NULLABLE, "code": _NULLABLE},
        }
    },
}
IMAGES = {
    "type": "object",
    "required": ["created", "data", "background", "output_format", "quality", "size", "notes"],
    "properties": {
        "created": _INTEGER,
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["seed", "score", "background_max_error"],
                "properties": {
                    "b64_json": _TEXT,
                    "url": _TEXT,
                    "seed": _INTEGER,
                    "score": {"type": ["number", "null"]},
                    "background_max_error": {"type": ["number", "null"]},
                },
            },
        },
        "background": _TEXT, "output_format": _TEXT, "quality": _TEXT, "size": _TEXT,
        "notes": {"type": "array", "items": _TEXT},
    },
}  # fmt: skip
REASONS = {
    "400": "A field is missing, malformed or out of range, or the pictures cannot be edited as asked.",
    "401": "No or an unknown API key.",
    "404": "No such model or result.",
    "405": "Another method is meant.",
    "408": "The body took too long to arrive.",
    "413": "The body is over the limit; it was read no further.",
    "415": "The body is not multipart/form-data.",
    "429": "The queue is full; Retry-After says when to ask again.",
    "500": "The server failed.",
    "503": "The server is shutting down.",
    "504": "The edit took too long.",
}


def described(app: FastAPI) -> None:
    """Give the application its description."""

    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version="1", routes=app.routes)
            schema["components"] = {
                "schemas": {"Error": ERROR, "Images": IMAGES},
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            }
            for path, methods in schema["paths"].items():
                for operation in methods.values():
                    _describe(path, operation)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = build  # type: ignore[method-assign]


def _describe(path: str, operation: dict[str, Any]) -> None:
    """Replace what FastAPI says of errors, which is not what this server answers."""
    operation["responses"].pop("422", None)
    edits = path == "/v1/images/edits"
    codes = set(REASONS) if edits else {"401", "404"} if path.startswith("/v1/") else set()
    for code in sorted(codes - ({"404"} if path == "/v1/models" else set())):
        operation["responses"][code] = {"description": REASONS[code], "content": _content("Error")}
    if path == "/readyz":
        operation["responses"]["503"] = {"description": REASONS["503"]}
    if not edits:
        return
    operation["requestBody"] = {
        "required": True,
        "content": {"multipart/form-data": {"schema": {
            "type": "object",
            "required": ["image", "prompt"],
            "properties": {name: field for name, field in FORM.items() if name != "image[]"},
        }}},
    }  # fmt: skip
    operation["responses"]["200"] = {
        "description": "The pictures, the best first; with `stream`, server-sent events.",
        "content": {**_content("Images"), "text/event-stream": {"schema": _TEXT}},
    }


def _content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
