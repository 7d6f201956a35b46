"""What all requests share: the models behind a queue, the results, the measures."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from fastapi import Request

from bld.apps.server.form import Order
from bld.apps.server.jobs import Closed, Full, Job, Jobs
from bld.apps.server.measures import Measures
from bld.apps.server.problems import ApiError, as_api_error, hung_up
from bld.apps.server.results import Results
from bld.apps.server.settings import Settings
from bld.apps.server.work import Finished, Partial, perform
from bld.editor import Editor

Editors = Mapping[str, Editor]
"""The models of one device, by name."""


class Service:
    """What the routes share: the queue, the results, the measures."""

    def __init__(self, devices: Sequence[Editors], settings: Settings) -> None:
        self.settings, self.models = settings, list(devices[0])
        self.started, self._unanswered = int(time.time()), 0
        self.jobs: Jobs[Editors] = Jobs(devices, settings.queue)
        self.results = Results(settings.url_lifetime)
        self.measures = Measures(lambda: self.jobs.waiting, lambda: self.jobs.running)

    def model(self, asked: str | None) -> str:
        """The name of a served model. Raises ApiError if there is none of that name."""
        name = self.settings.aliases.get(asked, asked) if asked else self.models[0]
        if name not in self.models:
            message = f"no model {str(asked)[:64]!r} here; there is {', '.join(self.models)}"
            raise ApiError(404, "model_not_found", message, param="model")
        return name

    def drained(self) -> bool:
        """Whether all that was accepted is done, and its answer made."""
        return self.jobs.drained() and not self._unanswered

    async def outcomes(self, order: Order, request: Request) -> AsyncGenerator[Partial | Finished]:
        """Queue an order; its previews and its end. Raises what ended it otherwise, timeouts included.

        A client that hangs up takes its order back, within a step. Close it once the answer is made.
        """
        name, loop = self.model(order.model), asyncio.get_running_loop()
        events: asyncio.Queue[Any] = asyncio.Queue()

        def tell(event: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        def work(job: Job[Editors], editors: Editors) -> Finished:
            self.measures.queued.observe(time.monotonic() - job.accepted)
            return perform(order, editors[name], self.measures, check=job.check, tell=tell)

        client = _sender(request, self.settings)
        job = Job(work, tell, client=client, user=order.user, id=request.state.request_id)
        gone = asyncio.ensure_future(_hung_up(request))
        self._unanswered += 1
        try:
            self._submit(job)
            while True:
                event = await self._next(events, gone, job)
                if isinstance(event, Exception):
                    raise as_api_error(event)
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self.jobs.cancel(job)
            gone.cancel()
            self._unanswered -= 1

    def _submit(self, job: Job[Editors]) -> None:
        try:
            self.jobs.submit(job)
        except Full as error:
            raise ApiError(
                429, "queue_full", str(error), headers={"retry-after": str(error.seconds)}
            ) from error
        except Closed as error:
            raise ApiError(503, "shutting_down", "the server is shutting down; ask another") from error

    async def _next(self, events: asyncio.Queue[Any], gone: asyncio.Future[None], job: Job[Editors]) -> Any:
        event = asyncio.ensure_future(events.get())
        left = job.accepted + self.settings.timeout - time.monotonic()
        done, _ = await asyncio.wait({event, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if event in done:
            return event.result()
        event.cancel()
        if gone in done:
            raise hung_up()
        took = f"{self.settings.timeout:g} s"
        raise ApiError(504, "timeout", f"the edit was not done after {took}; ask for fewer candidates")


def _sender(request: Request, settings: Settings) -> str:
    """Whose turn an order takes: the key's, or the address' where keys are not looked at."""
    if settings.api_keys:
        return request.headers.get("authorization", "").partition(" ")[2].strip()
    return request.client.host if request.client else ""


async def _hung_up(request: Request) -> None:
    """Return once the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
