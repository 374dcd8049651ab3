"""Datasets written by `sgpipe export --to hf`, or derived from one: Parquet files with sgpipe's columns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from sgpipe.errors import UserError
from sgpipe.records import SCHEMA, Record, from_table
from sgpipe.sources.annotated import AnnotationSource, DatasetClasses, ProblemCounts
from sgpipe.storage.shards import DATA, IMAGE_COLUMN, open_shard, read_row_group, row_faults

# Keys of the file metadata: the closed class lists, or null; and the identities of the runs that the rows come from.
CLASSES, ORIGIN = "sgpipe.classes", "sgpipe.origin"

_FILE = re.compile(r"(?P<split>\w+)-\d+-of-\d+\.parquet")


@dataclass
class HuggingFace:
    """A folder with files named data/SPLIT-00000-of-00001.parquet.

    Attributes:
        split: the split to read; None: the only one.
    """

    folder: Path
    split: str | None = None
    _locations: dict[str, tuple[Path, int, int]] = field(default_factory=dict)
    _group: tuple[tuple[Path, int], Sequence[Any]] | None = None

    def source(self) -> AnnotationSource:
        """Raises UserError: the folder has no such files or several splits, or the files have other columns."""
        split, files = self._files()
        with open_shard(files[0], SCHEMA.names) as file:
            schema = file.schema_arrow
        classes, origin = _classes(files[0], schema), _metadata(schema, ORIGIN)
        return AnnotationSource(
            dataset="hf",
            split=split,
            read=partial(self._records, split, files),
            files={"annotations": files[0], **{file.name: file for file in files[1:]}},
            classes=classes,
            image=self._image if IMAGE_COLUMN in schema.names else None,
            origin=[each for each in origin if isinstance(each, dict)] if isinstance(origin, list) else (),
        )

    def _files(self) -> tuple[str, list[Path]]:
        splits: dict[str, list[Path]] = {}
        for path in sorted((self.folder / DATA).glob("*.parquet")):
            if name := _FILE.fullmatch(path.name):
                splits.setdefault(name["split"], []).append(path)
        if not splits:
            raise UserError(f"{self.folder} has no {DATA}/SPLIT-00000-of-00001.parquet: it is not an exported dataset")
        if self.split is None and len(splits) > 1:
            raise UserError(f"{self.folder} has several splits: pass --split {' or '.join(splits)}")
        split = self.split or next(iter(splits))
        if split not in splits:
            raise UserError(f"{self.folder} has no split {split!r}: pass --split {' or '.join(splits)}")
        return split, splits[split]

    def _records(self, split: str, files: Sequence[Path], problems: ProblemCounts) -> Iterator[Record]:
        for file in files:
            with open_shard(file, SCHEMA.names) as shard:
                for group in range(shard.num_row_groups):
                    table = shard.read_row_group(group, columns=SCHEMA.names).select(SCHEMA.names).cast(SCHEMA)
                    for fault in row_faults(table, split):
                        raise UserError(f"{file}: {fault}")
                    for row, record in enumerate(from_table(table)):
                        self._locations[record.image_id] = file, group, row
                        yield record

    def _image(self, record: Record) -> bytes | None:
        """The image file of a record. Images of a row group are read only now, as 512 records with images are large."""
        file, group, row = self._locations[record.image_id]
        if self._group is None or self._group[0] != (file, group):
            table: pa.Table = read_row_group(file, group, [IMAGE_COLUMN])
            self._group = (file, group), table[IMAGE_COLUMN]
        image = self._group[1][row].as_py()
        return image and image["bytes"]


def _metadata(schema: pa.Schema, key: str) -> Any:
    """Return a value of the file metadata, which others may have changed; None if it is missing or not JSON."""
    try:
        return json.loads((schema.metadata or {}).get(key.encode(), b"null"))
    except (ValueError, RecursionError):
        return None


def _classes(file: Path, schema: pa.Schema) -> DatasetClasses | None:
    """Raises UserError: the class lists are not lists of names."""
    lists = _metadata(schema, CLASSES)
    if lists is None:
        return None
    names: list[Any] = [lists.get(kind) for kind in ("objects", "relations")] if isinstance(lists, dict) else [None]
    if not all(isinstance(each, list) and all(isinstance(name, str) for name in each) for each in names):
        raise UserError(f"{file}: the metadata {CLASSES!r} is not the lists of names objects and relations")
    return DatasetClasses(*map(tuple, names))
