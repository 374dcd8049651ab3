"""The source index: a split's records as the annotation file tells them, in one Arrow file.

The annotation file is read once. Its records lie beside the shards from then on, memory-mapped by every
worker, so neither a resumed run nor a worker parses millions of JSON items again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from sgpipe.errors import UserError
from sgpipe.records import Record, from_table
from sgpipe.sources.detections import Detections

_ROWS_PER_BATCH = 256
_META = b"sgpipe.source"


class SourceIndex:
    """Random access to the records of one split, in the order of its annotation file."""

    def __init__(self, path: Path) -> None:
        """Raises UserError: the file is missing or not an index."""
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(
                f"the source index {path} cannot be read ({error}); delete it to rebuild it"
            ) from None
        self.meta: dict[str, Any] = json.loads((self._reader.schema.metadata or {})[_META])

    def __len__(self) -> int:
        return int(self.meta["images"])

    def records(self, start: int, stop: int) -> list[Record]:
        """Records `start` up to, not including, `stop`."""
        first, last = start // _ROWS_PER_BATCH, -(-stop // _ROWS_PER_BATCH)
        batches = [self._reader.get_batch(i) for i in range(first, last)]
        table = pa.Table.from_batches(batches, schema=self._reader.schema)
        return from_table(table.slice(start - first * _ROWS_PER_BATCH, stop - start))


def write_index(path: Path, detections: Detections, meta: dict[str, Any]) -> None:
    """Write the index atomically; `meta` is kept in it, with counts and problems added.

    Raises UserError: nothing in the annotation file is an image.
    """
    tables = list(detections.tables())
    if not tables:
        raise UserError(f"{meta['annotations']} lists no images: it is not a COCO instances file")
    meta = meta | {
        "images": len(detections.file_names),
        "boxes": sum(len(table["objects"].combine_chunks().flatten()) for table in tables),
        "categories": list(detections.categories.values()),
        "problems": asdict(detections.problems),
    }
    schema = tables[0].schema.with_metadata({_META: json.dumps(meta)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        whole = pa.concat_tables(tables).combine_chunks()
        for batch in whole.to_batches(max_chunksize=_ROWS_PER_BATCH):
            writer.write_batch(batch)
    os.replace(temporary, path)
