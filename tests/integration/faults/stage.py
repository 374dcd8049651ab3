"""A made-up stage, in a file of its own so that workers import no more than they need."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from sgpipe.errors import ComputationError
from sgpipe.recipe import Resources
from sgpipe.records import Caption, Record, Relation
from sgpipe.stages.base import Stage
from sgpipe.utils.gpu import MemoryFullError

SECONDS = "SGPIPE_STUB_SECONDS"
MARKS = "SGPIPE_STUB_MARKS"
KINDS = (ValueError, MemoryError, TimeoutError, ComputationError, MemoryFullError, LookupError)


@dataclass
class Stub(Stage):
    """Says of an image what its name decides, in `seconds`; `marks` gets a file per image done,
    with the GPUs seen.
    """

    seconds: float = 0.0
    bytes: int = 0
    marks: str | None = None
    name: str = "stub"
    resources: Resources = field(default_factory=Resources)

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, records: list[Record]) -> list[Record]:
        for record in records:
            time.sleep(self.seconds)
            if "fatal" in record.file_name:
                os.kill(os.getpid(), signal.SIGSEGV)
            if "broken" in record.file_name:
                raise KINDS[int(record.image_id) % len(KINDS)](f"image {record.image_id}")
            digest = hashlib.sha256(record.image_id.encode()).digest()
            record.captions = [Caption(digest.hex() + "." * self.bytes)]
            last = len(record.objects) - 1
            record.relations = (
                [Relation(0, last, f"rank {digest[0]}", digest[1] / 255)] if last > 0 else []
            )
            if self.marks:
                Path(self.marks, record.image_id).write_text(
                    os.environ.get("CUDA_VISIBLE_DEVICES", "all")
                )
        return records
