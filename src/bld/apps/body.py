"""What every server here allows of a request's body."""

import asyncio

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CLOSE = {"connection": "close"}


class Limited:
    """Bodies over a limit are read no further: whoever reads one is given an HTTPException, which FastAPI
    answers: 413, or 408 for a body that is not there in time.
    """

    def __init__(self, app: ASGIApp, max_body: int, timeout: float | None = None) -> None:
        """max_body: bytes. timeout: seconds for all of them."""
        self.app, self.max_body, self.timeout = app, max_body, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = self._limited(receive, Headers(scope=scope).get("content-length", ""))
        await self.app(scope, receive, send)

    def _limited(self, receive: Receive, announced: str) -> Receive:
        """`receive` with the limits, which end with the body."""
        deadline = None if self.timeout is None else asyncio.get_running_loop().time() + self.timeout
        length, complete = 0, False

        async def limited() -> Message:
            nonlocal length, complete
            if complete:
                return await receive()
            self._check(int(announced) if announced.isdecimal() else 0)
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(
                    408, f"the body was not there after {self.timeout:g} s; send it faster", CLOSE
                ) from error
            length += len(message.get("body", b""))
            self._check(length)
            complete = not message.get("more_body", False)
            return message

        return limited

    def _check(self, length: int) -> None:
        if length > self.max_body:
            raise HTTPException(
                413, f"the request has {length} bytes or more; {self.max_body} are the limit", CLOSE
            )
