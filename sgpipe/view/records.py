"""One image of a run, read from its shard: a folder or an object store."""

from __future__ import annotations

from dataclasses import dataclass

from sgpipe.records import Record
from sgpipe.view.index import Index


@dataclass(frozen=True)
class RecordView:
    """A row of a run.

    Attributes:
        agreement: of `sgpipe score`, one for each of the record's relations: a dictionary of `score` (cosine),
            `swapped`, `rank`, `contrasts`, or None where it could not be scored; None for a run that is not scored.
        shard, row: where it lies: the shard's name within the run, and the row's number in it.
    """

    record: Record
    agreement: list[dict[str, float | int | None] | None] | None
    shard: str
    row: int


def read_record(index: Index, split: str, image_id: str) -> RecordView | None:
    """The row of an image; None if the index has no such image.

    Raises UserError: the shard is missing or damaged, or the store cannot be reached.
    """
    raise NotImplementedError


def read_embedded(index: Index, split: str, image_id: str) -> bytes | None:
    """The image file that the image's row holds; None if there is no such row, or it holds none.

    Pass it to `sgpipe.images.open_row_image` as `embedded`.

    Raises UserError: as `read_record`.
    """
    raise NotImplementedError
