"""Workers on this machine: processes that each hold the model, replaced when they die."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, Self

from bld.apps.batch.work import Work, begin
from bld.errors import BldError

MOST_STARTS = 3  # that may fail one after the other


@dataclass(frozen=True)
class Died:
    """What comes back for a job whose worker died over it."""

    reason: str


class Pool(Protocol):
    """Workers, somewhere: each job goes to one of them, and the answers come as they come."""

    def map(self, method: str, arguments: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """The place of each argument and what the method of a `Worker` returned for it, or Died.

        An exception of the method is raised here.
        """
        ...


class Processes:
    """A pool of processes on this machine. Use it in a `with`: they end with the block."""

    def __init__(self, work: Work, count: int) -> None:
        devices = work.loading.device.split(",")
        each = [replace(work, loading=replace(work.loading, device=device)) for device in devices]
        self._failed_starts = 0
        self._hands = [_Hand(each[i % len(each)]) for i in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for hand in self._hands:
            hand.end()

    def map(self, method: str, arguments: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See `Pool`."""
        waiting = deque(enumerate(arguments))
        while waiting or any(hand.place is not None for hand in self._hands):
            for hand in self._hands:
                if waiting and hand.ready and hand.place is None:
                    place, argument = waiting.popleft()
                    hand.give(place, method, argument)
            for connection in wait([hand.connection for hand in self._hands]):
                hand = next(hand for hand in self._hands if hand.connection is connection)
                given, answer = hand.place, hand.take()
                if isinstance(answer, Died):
                    self._replace(hand, answer)
                if isinstance(answer, BaseException):
                    raise answer
                if given is not None:
                    yield given, answer

    def _replace(self, hand: "_Hand", died: Died) -> None:
        self._failed_starts = 0 if hand.ready else self._failed_starts + 1
        if self._failed_starts == MOST_STARTS:
            raise BldError(
                f"workers die while they load the model ({died.reason}): try fewer --workers, or a smaller "
                "model"
            )
        self._hands[self._hands.index(hand)] = _Hand(hand.work)


class _Hand:
    """One worker process, from the outside. place: of the job it has, None without one."""

    def __init__(self, work: Work) -> None:
        self.work = work
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()  # so that its end is seen when the process dies
        self.ready = False
        self.place: int | None = None

    def give(self, place: int, method: str, argument: Any) -> None:
        self.place = place
        with suppress(OSError):  # if it is dead `take` finds that out
            self.connection.send((method, argument))

    def take(self) -> Any:
        """What it has sent: an answer, an exception, None if it is ready; Died if it is dead."""
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            self.connection.close()
            return Died(_cause(self.process.exitcode))
        self.ready, self.place = True, None
        return answer

    def end(self) -> None:
        self.process.kill()  # what it had in work is not in the ledger, and will be done again
        self.process.join()
        self.connection.close()


def _cause(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"worker ended with code {exitcode}"
    name = signal.Signals(-exitcode).name
    return f"worker killed by {name}" + "; out of memory?" * (name == "SIGKILL")


def serve(connection: Connection, work: Work) -> None:
    """A worker process: load, say so, do what comes, end with the process that began it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        worker = begin(work)
        connection.send(None)
        while True:
            method, argument = connection.recv()
            connection.send(getattr(worker, method)(argument))
    except EOFError:
        return
    except Exception as error:
        told = error if isinstance(error, BldError) else BldError(f"{type(error).__name__}: {error}")
        connection.send(told)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
