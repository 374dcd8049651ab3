"""A store in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obstore.store import MemoryStore

from sgpipe.files.stores import StorePath, UnconditionalError

if TYPE_CHECKING:
    from obstore import UpdateVersion


class KilledError(Exception):
    """The process is gone."""


class Memory(StorePath):
    """A store in memory. `left`: operations that change it until its process is killed."""

    def __init__(self) -> None:
        super().__init__("s3://bucket/run")
        self.memory = MemoryStore()
        self.left: list[int | None] = [None]  # also of places below it

    @property
    def _reads(self) -> MemoryStore:
        return self.memory

    @property
    def _writes(self) -> MemoryStore:
        left = self.left[0]
        if left is not None:
            if not left:
                raise KilledError
            self.left[0] = left - 1
        return self.memory


class Pretending(Memory):
    """A store that takes the conditions of writes and ignores them."""

    def put_if(self, data: bytes, version: UpdateVersion | None) -> bool:
        self.put(data)
        return True


class Refusing(Memory):
    """A store that refuses the conditions of writes."""

    def put_if(self, data: bytes, version: UpdateVersion | None) -> bool:
        raise UnconditionalError(f"{self}: 501 Not Implemented")
