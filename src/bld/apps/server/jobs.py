"""The queue between requests and models: bounded, fair, and nothing accepted is ever lost."""

import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from bld.errors import BldError, Cancelled, InvalidInput

log = logging.getLogger("bld.server")
Resource = TypeVar("Resource")


class Full(Exception):
    """The queue takes no more. seconds: when to ask again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; try again in {seconds} s")
        self.seconds = seconds


class Closed(Exception):
    """The queue takes nothing any more."""


class Job(Generic[Resource]):
    """One accepted piece of work.

    work: called in a worker's thread with the worker's resource; should call `check` often. tell: is given
    what work returns, or the exception that it raised; called once, in the worker's thread. client: whose
    it is: clients take turns, and the users of each within its turns. id: of its request, for the log.
    """

    def __init__(
        self,
        work: Callable[["Job[Resource]", Resource], Any],
        tell: Callable[[Any], None],
        *,
        client: str,
        user: str = "",
        id: str,
    ) -> None:
        self.work, self.tell, self.client, self.user, self.id = work, tell, client, user, id
        self.accepted = time.monotonic()
        self.started: float | None = None
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Nobody waits for it any more: it ends at its next check."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise Cancelled if it has been cancelled."""
        if self._cancelled.is_set():
            raise Cancelled("nobody waits for this edit any more")


class Jobs(Generic[Resource]):
    """A queue of at most `limit` waiting jobs, and a thread for each resource (a device with its models)."""

    def __init__(self, resources: Sequence[Resource], limit: int) -> None:
        self.limit, self.running = limit, 0
        # By client, and of each by user; whose turn is next comes first.
        self._waiting: OrderedDict[str, OrderedDict[str, deque[Job[Resource]]]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = 1.0  # that a job takes: a running mean
        self._workers = [threading.Thread(target=self._work, args=(r,), daemon=True) for r in resources]
        for worker in self._workers:
            worker.start()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return sum(len(turn) for users in self._waiting.values() for turn in users.values())

    def submit(self, job: Job[Resource]) -> None:
        """Accept a job. Raises Full or Closed if it is not."""
        with self._changed:
            if self._closed:
                raise Closed
            idle = len(self._workers) - self.running
            if self.waiting >= self.limit + idle:
                ahead = (self.waiting + self.running) / len(self._workers)
                raise Full(max(1, math.ceil(self._seconds * ahead)))
            users = self._waiting.setdefault(job.client, OrderedDict())
            users.setdefault(job.user, deque()).append(job)
            self._changed.notify_all()

    def cancel(self, job: Job[Resource]) -> None:
        """Stop a job within a step, or take it out of the queue if it has not begun."""
        job.cancel()
        with self._changed:
            users = self._waiting.get(job.client, OrderedDict())
            turn = users.get(job.user)
            if turn and job in turn:
                turn.remove(job)
                if not turn:
                    del users[job.user]
                if not users:
                    del self._waiting[job.client]
                self._changed.notify_all()

    def close(self) -> None:
        """Accept nothing more; what is accepted is still done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether it takes nothing any more."""
        return self._closed

    def drained(self) -> bool:
        """Whether nothing waits and nothing runs."""
        with self._changed:
            return not self._waiting and not self.running

    def _next(self) -> Job[Resource] | None:
        """The first job of the client and user whose turn it is; None once all is done and none can come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            client, users = self._waiting.popitem(last=False)
            user, turn = users.popitem(last=False)
            job = turn.popleft()
            if turn:
                users[user] = turn  # behind the others
            if users:
                self._waiting[client] = users
            self.running += 1
            return job

    def _work(self, resource: Resource) -> None:
        while (job := self._next()) is not None:
            job.started = time.monotonic()
            try:
                job.check()
                outcome = job.work(job, resource)
            except Exception as error:
                if not isinstance(error, BldError):
                    log.error("an edit failed", exc_info=error, extra={"request_id": job.id})
                elif not isinstance(error, InvalidInput | Cancelled):  # which may quote a prompt
                    log.error("an edit failed: %s", error, extra={"request_id": job.id})
                # Tracebacks hold every tensor of the edit: without them the memory is free again.
                error.__cause__ = error.__context__ = None
                outcome = error.with_traceback(None)
            with self._changed:
                self.running -= 1
                more = time.monotonic() - job.started - self._seconds
                # One that was refused or broken off says how long a job takes at least.
                if more > 0 or not isinstance(outcome, Exception):
                    self._seconds += 0.2 * more
                self._changed.notify_all()
            job.tell(outcome)
            del job, outcome
