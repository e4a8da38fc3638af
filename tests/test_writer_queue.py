"""The queue of writers by itself: who is granted the turn, whatever happens around it."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from asyncsession_kit import LockTimeoutError
from asyncsession_kit._concurrency import AsyncWaiter, Waiter
from asyncsession_kit._sync.turn import take_turn
from asyncsession_kit._writer_queue import Turn, WriterQueue, _awaited_in, writer_queue


class Writer:
    """Is a turn, and whether its transaction is open."""

    def __init__(self, queue: WriterQueue, waiter: AsyncWaiter | Waiter | None = None) -> None:
        self.is_open = True
        self.turn = Turn(queue, blocking=True, in_transaction=lambda: self.is_open)
        self.turn.waiter = waiter or Waiter()

    def begin(self) -> None:
        """Say that SQLite let it begin."""
        self.turn.began = True


@pytest.fixture
def queue(tmp_path: Path) -> WriterQueue:
    """A queue of no other test's."""
    return writer_queue(str(tmp_path / "test.db"))


def test_the_turn_passes_in_order(queue: WriterQueue) -> None:
    """Who leaves makes way for the one who waits longest; who leaves the line for nobody."""
    writers = [Writer(queue) for _ in range(4)]
    assert [queue.enter(writer.turn) for writer in writers] == [True, False, False, False]
    queue.leave(writers[1].turn)
    queue.leave(writers[1].turn)
    assert queue.holder is writers[0].turn
    queue.leave(writers[0].turn)
    assert queue.holder is writers[2].turn
    queue.leave(writers[0].turn)
    assert queue.holder is writers[2].turn
    queue.leave(writers[2].turn)
    queue.leave(writers[3].turn)
    assert (queue.holder, len(queue)) == (None, 0)


def test_a_transaction_that_ended_silently_holds_nothing(queue: WriterQueue) -> None:
    """The next to come, or to look, is granted the turn of a connection that has committed."""
    first, second, third = (Writer(queue) for _ in range(3))
    queue.enter(first.turn)
    first.begin()
    assert not queue.enter(second.turn)
    first.is_open = False
    queue.refresh()
    assert queue.holder is second.turn
    second.begin()
    second.is_open = False
    assert queue.enter(third.turn)


def test_a_transaction_that_has_not_begun_keeps_its_turn(queue: WriterQueue) -> None:
    """Between the grant and BEGIN nothing is open yet."""
    first, second = Writer(queue), Writer(queue)
    first.is_open = False
    queue.enter(first.turn)
    assert not queue.enter(second.turn)
    queue.refresh()
    assert queue.holder is first.turn


def test_a_waiter_whose_loop_is_closed_is_skipped(queue: WriterQueue) -> None:
    """Nobody can be woken there; the next in line is granted the turn instead."""

    async def wait() -> AsyncWaiter:
        return AsyncWaiter()

    gone = [Writer(queue, asyncio.run(wait())) for _ in range(2)]
    first, last = Writer(queue), Writer(queue)
    for writer in (first, *gone, last):
        queue.enter(writer.turn)
    queue.leave(first.turn)
    assert queue.holder is last.turn
    for writer in gone:
        queue.leave(writer.turn)
    assert queue.holder is last.turn
    queue.enter(gone[0].turn)
    queue.leave(last.turn)
    assert (queue.holder, len(queue)) == (None, 0)


def test_a_turn_may_come_back_in_the_middle_of_a_call(queue: WriterQueue) -> None:
    """The garbage collector may run anywhere, and give up a place of the thread that is in here."""
    first, forgotten, last = (Writer(queue) for _ in range(3))

    def collect() -> bool:
        queue.leave(forgotten.turn)
        return False

    first.turn.in_transaction = collect
    for writer in (first, forgotten, last):
        queue.enter(writer.turn)
    first.begin()
    worker = threading.Thread(target=queue.refresh, daemon=True)
    worker.start()
    worker.join(10)
    assert not worker.is_alive()
    assert queue.holder is last.turn


def test_a_wait_for_what_has_just_ended_may_still_be_too_long(queue: WriterQueue) -> None:
    """Where the holder is gone by the time the error is made, that is what it says."""
    error = queue.timed_out(0.5)
    assert isinstance(error, LockTimeoutError)
    assert "0.5 s for the turn" in str(error)
    assert "a transaction that has just ended" in str(error)


def test_a_wait_ends_where_the_time_is_over(queue: WriterQueue) -> None:
    """A refused waiter has left the line."""
    holder, late = Writer(queue), Writer(queue)
    queue.enter(holder.turn)
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            take_turn(late.turn, 0.05)
        except LockTimeoutError as error:
            ended.append(error)

    worker = threading.Thread(target=wait)
    worker.start()
    worker.join(10)
    assert len(ended) == 1
    assert (queue.holder, len(queue)) == (holder.turn, 0)


def test_every_spelling_of_a_path_is_one_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links are followed, dots resolved, and a relative path starts at the working folder."""
    (tmp_path / "link.db").symlink_to(tmp_path / "test.db")
    monkeypatch.chdir(tmp_path)
    queue = writer_queue(str(tmp_path / "test.db"))
    assert writer_queue("test.db") is queue
    assert writer_queue(f"../{tmp_path.name}/test.db") is queue
    assert writer_queue("link.db") is queue
    assert writer_queue("other.db") is not queue


def test_a_queue_lives_as_long_as_somebody_uses_it(tmp_path: Path) -> None:
    """Nothing is kept of files that are not used any more."""
    path = str(tmp_path / "test.db")
    first = writer_queue(path)
    holder = Writer(first)
    first.enter(holder.turn)
    assert writer_queue(path).holder is holder.turn
    del first, holder
    gc.collect()
    assert writer_queue(path).holder is None


def test_the_holder_is_described_since_it_was_granted(queue: WriterQueue) -> None:
    """What is said of the holder begins when it was granted the turn, not when it came."""
    first, second = Writer(queue), Writer(queue)
    second.turn.since = time.monotonic() - 100
    queue.enter(first.turn)
    queue.enter(second.turn)
    queue.leave(first.turn)
    second.begin()
    assert "thread 'MainThread', which began to write" in second.turn.describe()
    assert "100." not in second.turn.describe()


async def test_wait_for_is_seen_to_wait_for_what_it_was_given() -> None:
    """Up to Python 3.11 that is a task of its own, whose writer its caller then waits for."""
    task = asyncio.create_task(asyncio.wait_for(asyncio.Event().wait(), 60))
    await asyncio.sleep(0)
    coroutine: Any = task.get_coro()
    frame = coroutine.cr_frame
    assert _awaited_in(frame) == (frame.f_locals["fut"],)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
