"""Two runs that write into one store: whatever the order of their requests, the later one wins."""

import threading
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from sgpipe.errors import TakenOverError
from sgpipe.storage.manifest import WriterClaim
from tests.memory_store import Memory, Pretending, Refusing

SHARD = "data/val-000000000-000000008.parquet"
EARLIER, LATER = "earlier", "later"
WRITERS = (EARLIER, LATER)


class Turns:
    """Lets two threads send their requests in a given order; at its end they take turns."""

    def __init__(self, order: Sequence[str]) -> None:
        self._order = [*order, *WRITERS * 50]
        self._busy: str | None = None
        self._ended: set[str] = set()
        self._changed = threading.Condition()

    def wait(self) -> None:
        """Wait until this thread's next request may be sent; its last one has been answered."""
        writer = threading.current_thread().name
        if writer not in WRITERS:
            return
        with self._changed:
            self._release(writer)
            self._changed.wait_for(lambda: self._is_next(writer))
            self._order.pop(0)
            self._busy = writer

    def end(self) -> None:
        """This thread sends no further request."""
        writer = threading.current_thread().name
        with self._changed:
            self._ended.add(writer)
            self._release(writer)

    def _release(self, writer: str) -> None:
        if self._busy == writer:
            self._busy = None
        self._changed.notify_all()

    def _is_next(self, writer: str) -> bool:
        while self._order[0] in self._ended:
            self._order.pop(0)
        return self._busy is None and self._order[0] == writer


def ordered(kind: type[Memory], turns: Turns) -> Memory:
    """Return a store in memory whose requests wait for their turns."""

    class Ordered(kind):  # type: ignore[valid-type, misc]
        @property
        def _reads(self) -> MemoryStore:
            turns.wait()
            return self.memory

        @property
        def _writes(self) -> MemoryStore:
            turns.wait()
            return self.memory

    return Ordered()


def race(kind: type[Memory], order: Sequence[str], leftover: bytes | None = None) -> bytes:
    """Let a run write a shard while a later one claims the store and writes the same; return it."""
    turns = Turns(order)
    store = ordered(kind, turns)
    if leftover:
        (store / SHARD).put(leftover)
    zombie = WriterClaim(store)
    zombie.make()
    heir = WriterClaim(store)

    def write_earlier() -> None:
        with suppress(TakenOverError):
            zombie.write(SHARD, EARLIER.encode())
        turns.end()

    def write_later() -> None:
        try:
            heir.make()
            heir.write(SHARD, LATER.encode())
        finally:
            turns.end()

    threads = [
        threading.Thread(target=write_earlier, name=EARLIER),
        threading.Thread(target=write_later, name=LATER),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (store / SHARD).read() or b""


@given(
    order=st.lists(st.sampled_from(WRITERS), max_size=30),
    leftover=st.sampled_from([None, b"of a killed run"]),
)
def test_a_write_of_an_earlier_run_never_wins(order: list[str], leftover: bytes | None) -> None:
    assert race(Memory, order, leftover) == LATER.encode()


def test_every_request_of_the_earlier_run_may_be_late() -> None:
    """The later run does all its work between two requests of the earlier one."""
    for requests in range(6):
        order = [*[EARLIER] * requests, *[LATER] * 40]
        assert race(Memory, order) == LATER.encode(), requests


@pytest.mark.parametrize("kind", [Pretending, Refusing])
def test_a_store_without_conditions_is_known_and_told(kind: type[Memory]) -> None:
    """There what is on its way while another run claims the store still lands."""
    store = kind()
    claim = WriterClaim(store)
    claim.make()
    claim.check()  # the store's trial has left the claim as it was
    assert claim.note is not None
    assert claim.note.startswith(f"{store.uri} ignores the conditions of writes")
    claim.write(SHARD, b"first")
    claim.write(SHARD, b"second")
    assert (store / SHARD).read() == b"second"
    assert race(kind, [EARLIER, *[LATER] * 40]) == EARLIER.encode()


def test_a_store_with_conditions_needs_no_note() -> None:
    claim = WriterClaim(Memory())
    claim.make()
    assert claim.is_conditional
    assert claim.note is None
