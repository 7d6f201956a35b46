"""Workers on Ray: actors with the model, on this machine or on a cluster, replaced when they die."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bld.apps.batch.run import MOST_STARTS, Died
from bld.apps.batch.work import Reader, Work, begin
from bld.apps.cluster import connected, gpus_for_each
from bld.errors import BldError
from bld.options import BatchOptions


@contextmanager
def on_cluster(work: Work, batch: BatchOptions, address: str) -> Iterator["Actors"]:
    """Actors of the cluster at an address, or of one that is started here for as long as the block lasts.

    The job's folder, and local paths in the manifest, must be the same files on every node.
    """
    with connected(address) as ray:
        yield Actors(ray, work, batch)


class Actors:
    """A pool of actors. See `bld.apps.batch.run.Pool`.

    One that finds no room waits for it, which is what a cluster grows by; those that are there do the work.
    """

    def __init__(self, ray: Any, work: Work, batch: BatchOptions) -> None:
        gpus = gpus_for_each(batch.gpus_per_worker)
        cpus = 0 if gpus else work.threads
        what, each = ("GPU", gpus) if gpus else ("CPU", cpus)
        fitting = max(1, int(ray.cluster_resources().get(what, 0) / each))
        self._ray, self._work, self._failed_starts = ray, work, 0
        self._actor = ray.remote(num_cpus=cpus, num_gpus=gpus)(Actor)
        self._starting: dict[Any, Any] = {}  # actors by what tells that they are ready
        self._idle: list[Any] = []
        for _ in range(batch.workers or fitting):
            self._start()

    def map(self, method: str, arguments: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See `Pool`."""
        waiting, busy = deque(enumerate(arguments)), dict[Any, tuple[Any, int]]()
        while waiting or busy:
            while waiting and self._idle:
                place, argument = waiting.popleft()
                actor = self._idle.pop()
                busy[actor.call.remote(method, argument)] = actor, place
            (answered, *_), _ = self._ray.wait([*self._starting, *busy], num_returns=1)
            actor, given = busy.pop(answered, (self._starting.pop(answered, None), None))
            answer = self._answer(answered)
            if isinstance(answer, BldError):
                raise answer
            if isinstance(answer, Died):
                self._replace(answer, was_ready=given is not None)
            else:
                self._failed_starts = 0
                self._idle.append(actor)
            if given is not None:
                yield given, answer

    def _answer(self, answered: Any) -> Any:
        try:
            return self._ray.get(answered)
        except self._ray.exceptions.RayError as error:  # the actor or its node is gone
            return Died(str(error).strip().partition("\n")[0])

    def _start(self) -> None:
        actor = self._actor.remote(self._work)
        self._starting[actor.ready.remote()] = actor

    def _replace(self, died: Died, *, was_ready: bool) -> None:
        self._failed_starts = 0 if was_ready else self._failed_starts + 1
        if self._failed_starts == MOST_STARTS:
            raise BldError(f"actors die while they load the model ({died.reason}): try a smaller model")
        self._start()


class Actor:
    """A `Worker` on Ray. Its own errors are answers: an exception would be taken for its death."""

    def __init__(self, work: Work) -> None:
        self._worker: Reader | BldError
        try:
            self._worker = begin(work)
        except BldError as error:
            self._worker = error

    def ready(self) -> BldError | None:
        """Returns once the model is loaded, or why it cannot be."""
        return self._worker if isinstance(self._worker, BldError) else None

    def call(self, method: str, argument: Any) -> Any:
        """A method of the worker."""
        try:
            return getattr(self._worker, method)(argument)
        except BldError as error:
            return error
