"""The queue: bounded, fair, and whatever is accepted is told of exactly once."""

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bld.apps.server.jobs import Closed, Full, Job, Jobs
from bld.errors import Cancelled
from tests.apps.servers import until


def job(work: Callable[[], Any], told: list[Any], client: str = "", user: str = "") -> Job[None]:
    return Job(lambda *_: work(), told.append, client=client, user=user, id="")


def held(jobs: Jobs[None]) -> tuple[Job[None], threading.Event]:
    """A job that runs until it is let go; what comes behind it waits."""
    release = threading.Event()
    first = job(lambda: release.wait(30), [])
    jobs.submit(first)
    until(lambda: jobs.running == 1)
    return first, release


@given(st.lists(st.sampled_from([("a", ""), ("b", "x"), ("b", "y"), ("b", "z"), ("c", "x")]), max_size=12))
def test_clients_take_turns_and_users_within_them(asked: list[tuple[str, str]]) -> None:
    """And the jobs of each keep their order."""
    jobs: Jobs[None] = Jobs([None], 100)
    _, release = held(jobs)
    order: list[int] = []
    for number, (client, user) in enumerate(asked):
        jobs.submit(job(lambda n=number: order.append(n), [], client, user))  # type: ignore[misc]
    release.set()
    until(jobs.drained)
    jobs.close()
    assert sorted(order) == list(range(len(asked)))
    done = [asked[number] for number in order]
    for one in set(asked):
        own = [number for number in order if asked[number] == one]
        assert own == sorted(own)
    assert_turns([client for client, _ in done])
    for client in {client for client, _ in done}:
        assert_turns([user for other, user in done if other == client])


def assert_turns(done: list[str]) -> None:
    for one in set(done):
        places = [place for place, other in enumerate(done) if other == one]
        for before, after in itertools.pairwise(places):
            waiting = set(done[after:]) - {one}
            assert waiting <= set(done[before + 1 : after]), "whoever waits has a turn in between"


def test_a_full_queue_refuses_and_an_idle_worker_is_room() -> None:
    jobs: Jobs[None] = Jobs([None], 0)
    _, release = held(jobs)
    with pytest.raises(Full, match="try again in 1 s"):
        jobs.submit(job(lambda: None, []))
    release.set()
    until(jobs.drained)
    told: list[Any] = []
    jobs.submit(job(lambda: "done", told))
    until(lambda: told == ["done"])
    jobs.close()


def test_when_to_ask_again_goes_by_what_was_done() -> None:
    """What is refused takes no time, which is not the time that an edit takes."""
    jobs: Jobs[None] = Jobs([None], 4)
    told: list[Any] = []
    for number in range(1, 21):
        jobs.submit(job(lambda: int("bad input"), told))
        until(lambda n=number: len(told) == n)  # type: ignore[misc]
    _, release = held(jobs)
    for _ in range(4):
        jobs.submit(job(lambda: None, told))
    with pytest.raises(Full, match="try again in 5 s"):
        jobs.submit(job(lambda: None, told))
    release.set()
    jobs.close()


def test_what_work_raises_is_told_without_its_frames() -> None:
    """Frames hold tensors: an edit that ran out of memory must leave it free for the next."""
    jobs: Jobs[None] = Jobs([None], 1)
    told: list[Any] = []

    def fail() -> None:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise MemoryError("outer") from error

    jobs.submit(job(fail, told))
    until(lambda: told)
    jobs.close()
    assert isinstance(told[0], MemoryError)
    assert (told[0].__traceback__, told[0].__cause__, told[0].__context__) == (None, None, None)


def test_close_does_what_was_accepted_and_takes_no_more() -> None:
    jobs: Jobs[None] = Jobs([None], 8)
    _, release = held(jobs)
    told: list[Any] = []
    for number in range(5):
        jobs.submit(job(lambda n=number: n, told))  # type: ignore[misc]
    jobs.close()
    with pytest.raises(Closed):
        jobs.submit(job(lambda: None, told))
    assert not jobs.drained()
    release.set()
    until(jobs.drained)
    until(lambda: len(told) == 5)
    assert told == list(range(5))


def test_cancelled_jobs_leave_the_queue_or_end_at_their_next_check() -> None:
    jobs: Jobs[None] = Jobs([None], 8)
    first, release = held(jobs)
    ran: list[Any] = []
    waiting = job(lambda: ran.append(1), [])
    jobs.submit(waiting)
    jobs.cancel(waiting)
    assert jobs.waiting == 0
    jobs.cancel(first)
    with pytest.raises(Cancelled):
        first.check()
    release.set()
    until(jobs.drained)
    jobs.close()
    assert not ran


def test_two_workers_work_at_once() -> None:
    jobs: Jobs[str] = Jobs(["cuda:0", "cuda:1"], 8)
    both, told = threading.Barrier(2, timeout=30), []

    def work(_: Job[str], device: str) -> str:
        both.wait()
        return device

    for _ in range(2):
        jobs.submit(Job(work, told.append, client="", id=""))
    until(lambda: sorted(told) == ["cuda:0", "cuda:1"])
    jobs.close()
