"""The source index: the records of a split as its annotation file gives them, in Arrow files of a
million rows, the parts.

Workers map those that they need into their memory, or read ranges of them in a store. Counts,
problems, class names and origin are in a JSON file beside them, written last.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import TypedDict

import pyarrow as pa

from sgpipe.errors import StoreError, UserError
from sgpipe.files.locations import Location, open_file
from sgpipe.files.stores import StorePath
from sgpipe.records import Record, from_table
from sgpipe.utils.atomic import atomic_write, write_text
from sgpipe.utils.hashing import file_sha256, fingerprint

ROWS_PER_PART = 1 << 20
_ROWS_PER_SLICE = 1 << 13
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
        parts: the SHA-256 of each file of records.
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
    parts: list[str]


class SourceIndex:
    """Random access to the records of one split, in the order of its annotation file."""

    def __init__(self, path: Path) -> None:
        """Open the annotations of a split.

        Raises:
            UserError: a file is missing or not an index.
        """
        self._path = path
        try:
            self.meta = _read_meta(_meta_path(path))
            for part in self.parts:
                with open_file(part) as file:
                    pa.ipc.open_file(file)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise UserError(f"the source index {path} cannot be read ({error})") from None

    def __len__(self) -> int:
        return self.meta["images"]

    @property
    def parts(self) -> list[Path]:
        """Return the files of the records."""
        numbers = range(len(self.meta["parts"]))
        return [self._path.with_name(part_name(self._path.name, number)) for number in numbers]

    @property
    def is_whole(self) -> bool:
        """Whether no part has changed. Raises OSError."""
        return [file_sha256(part) for part in self.parts] == self.meta["parts"]

    def records(self, start: int, stop: int) -> list[Record]:
        """Records `start` up to, not including, `stop`."""
        return read_records(self._path.parent, self._path.name, start, stop)


def part_name(name: str, number: int) -> str:
    """Return the name of the file of a part of an index."""
    return f"{name.removesuffix('.arrow')}.{number:05d}.arrow"


def read_records(folder: Location, name: str, start: int, stop: int) -> list[Record]:
    """Records `start` up to, not including, `stop` of an index, from the parts that have them."""
    records: list[Record] = []
    for number in range(start // ROWS_PER_PART, -(-stop // ROWS_PER_PART)):
        part = folder / part_name(name, number)
        offset = number * ROWS_PER_PART
        first = max(start - offset, 0)
        last = min(stop - offset, ROWS_PER_PART)
        with open_file(part) as file:
            records += _read_part(file, first, last, part)
    return records


def _read_part(index: pa.NativeFile, start: int, stop: int, name: Location) -> list[Record]:
    """Records `start` up to, not including, `stop` of the Arrow file of a part, which messages call
    `name`.
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
    """Write the records of a split in parts, these in batches of equal size, and what `meta` then
    returns with their counts.
    """
    _meta_path(path).unlink(missing_ok=True)
    counts = Counter[str]()
    digests: list[str] = []
    slices = _slices(tables)
    for first in slices:
        part = path.with_name(part_name(path.name, len(digests)))
        rest = islice(slices, ROWS_PER_PART // _ROWS_PER_SLICE - 1)
        digests.append(_write_part(part, chain([first], rest), counts))
    described = {**meta(), **counts, "parts": digests}
    write_text(_meta_path(path), json.dumps({**described, "checksum": fingerprint(described)}))


def _slices(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows of tables in tables of equal size; the last one may be shorter."""
    tables = iter(tables)
    first = next(tables)
    rows = first.slice(0, 0)
    for table in chain([first], tables):
        rows = pa.concat_tables([rows, table]).combine_chunks()
        while len(rows) > _ROWS_PER_SLICE:
            yield rows.slice(0, _ROWS_PER_SLICE)
            rows = rows.slice(_ROWS_PER_SLICE)
    yield rows


def _write_part(path: Path, tables: Iterable[pa.Table], counts: Counter[str]) -> str:
    """Write a part, and count its contents; return its hash."""
    tables = iter(tables)
    first = next(tables)
    with atomic_write(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
            for table in chain([first], tables):
                counts["images"] += table.num_rows
                counts["boxes"] += len(table["objects"].combine_chunks().flatten())
                counts["texts"] += len(table["captions"].combine_chunks().flatten())
                writer.write_table(table, _ROWS_PER_BATCH)
        return file_sha256(temporary)


def _read_meta(path: Path) -> IndexMeta:
    """Return what was said of an index. Raises ValueError: it has changed; OSError."""
    described = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(described, dict) or described.pop("checksum", None) != fingerprint(described):
        raise ValueError("its description has changed")
    meta: IndexMeta = described  # type: ignore[assignment]
    return meta


def _meta_path(path: Path) -> Path:
    return path.with_suffix(".json")
