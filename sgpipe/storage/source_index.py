"""The source index: the records of a split as its annotation file gives them, in one Arrow file.

Workers map it into their memory. Counts, problems, class names and origin are in a JSON file beside
it, written last.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import TypedDict

import pyarrow as pa

from sgpipe.errors import StoreError, UserError
from sgpipe.files.locations import Location
from sgpipe.files.stores import StorePath
from sgpipe.records import Record, from_table
from sgpipe.utils.atomic import atomic_write, write_text
from sgpipe.utils.hashing import file_sha256, fingerprint

_ROWS_PER_BATCH = 256


class IndexMeta(TypedDict, total=False):
    """What is said of the records of a split.

    Attributes:
        annotations, captions: the files that they were read from.
        annotations_sha256, captions_sha256: their content; run: the one that is extended.
        files: what identifies the files without reading them.
        located: the images were where the annotations say.
        notes: what the user should know.
        problems: what was lost or changed, and how often.
        categories, category_ids: the classes, sorted, and the id of each.
        known: how often the run that is extended has which triplet of texts.
        images, boxes, texts: how many there are; texts: captions.
        sha256: of the file of records.
    """

    annotations: str
    captions: str
    annotations_sha256: str
    captions_sha256: str
    run: str
    files: dict[str, object]
    located: bool
    notes: list[str]
    problems: dict[str, int]
    categories: list[str]
    category_ids: list[int]
    known: list[tuple[str, str, str, int]]
    images: int
    boxes: int
    texts: int
    sha256: str


class SourceIndex:
    """Random access to the records of one split, in the order of its annotation file."""

    def __init__(self, path: Path) -> None:
        """Open the annotations of a split.

        Raises:
            UserError: the file is missing or not an index.
        """
        try:
            self.meta = _read_meta(_meta_path(path))
            self._file = pa.memory_map(str(path))
            pa.ipc.open_file(self._file)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"the source index {path} cannot be read ({error})") from None
        self._path = path

    def __len__(self) -> int:
        return self.meta["images"]

    def records(self, start: int, stop: int) -> list[Record]:
        """Records `start` up to, not including, `stop`."""
        return read_records(self._file, start, stop, self._path)


def read_records(index: pa.NativeFile, start: int, stop: int, name: Location) -> list[Record]:
    """Records `start` up to, not including, `stop` of the Arrow file of an index, which messages
    call `name`.
    """
    first = start // _ROWS_PER_BATCH
    last = -(-stop // _ROWS_PER_BATCH)
    try:
        reader = pa.ipc.open_file(index)
        table = pa.Table.from_batches(
            [reader.get_batch(i) for i in range(first, last)], schema=reader.schema
        )
    except StoreError:
        raise
    except (OSError, pa.ArrowException) as error:
        advice = ""
        if isinstance(name, StorePath):
            advice = "; delete it and its .json, and run the same command again"
        raise UserError(f"the source index {name} cannot be read ({error}){advice}") from None
    return from_table(table.slice(start - first * _ROWS_PER_BATCH, stop - start))


def write_index(
    path: Path, tables: Iterable[pa.Table], meta: Callable[[], Mapping[str, object]]
) -> None:
    """Write the records of a split in batches of equal size, and what `meta` then returns with
    their counts.
    """
    _meta_path(path).unlink(missing_ok=True)
    images = boxes = texts = 0
    tables = iter(tables)
    first = next(tables)
    with atomic_write(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
            rest = first.slice(0, 0)
            for table in chain([first], tables):
                images += table.num_rows
                boxes += len(table["objects"].combine_chunks().flatten())
                texts += len(table["captions"].combine_chunks().flatten())
                rest = pa.concat_tables([rest, table]).combine_chunks()
                written = len(rest) - len(rest) % _ROWS_PER_BATCH
                writer.write_table(rest.slice(0, written), _ROWS_PER_BATCH)
                rest = rest.slice(written)
            writer.write_table(rest, _ROWS_PER_BATCH)
        digest = file_sha256(temporary)
    described = {**meta(), "images": images, "boxes": boxes, "texts": texts, "sha256": digest}
    write_text(_meta_path(path), json.dumps({**described, "checksum": fingerprint(described)}))


def _read_meta(path: Path) -> IndexMeta:
    """Return what was said of an index. Raises ValueError: it has changed; OSError."""
    described = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(described, dict) or described.pop("checksum", None) != fingerprint(described):
        raise ValueError("its description has changed")
    meta: IndexMeta = described  # type: ignore[assignment]
    return meta


def _meta_path(path: Path) -> Path:
    return path.with_suffix(".json")
