"""Counts over the shards of a run, one shard in memory at a time, computed by Arrow."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.shards.manifest import Manifest
from sgpipe.shards.read import iter_tables

THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
_COLUMNS = ("split", "objects", "captions", "triplets", "pairs", "relations", "status", "error")


@dataclass
class Level:
    """What a confidence threshold keeps."""

    relations: int = 0
    images: int = 0
    predicates: set[str] = field(default_factory=set)


@dataclass
class Measures:
    """Counts of one run. `levels` maps a threshold to what it keeps; ground truth passes every threshold."""

    run: str
    fingerprint: str
    note: str = ""
    images: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    totals: Counter[str] = field(default_factory=Counter)
    predicates: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    levels: dict[float, Level] = field(default_factory=lambda: {t: Level() for t in THRESHOLDS})


def measure(root: Path) -> Measures:
    """Count what the run in `root` holds.

    Raises UserError: it is not a run, or a shard is missing or damaged.
    """
    manifest = Manifest.load(root)
    name, fingerprint, note = (str(manifest.run.get(key, "")) for key in ("name", "fingerprint", "note"))
    measures = Measures(name, fingerprint, note)
    for table in iter_tables(root, _COLUMNS):
        _add(measures, table)
    return measures


def distinct_predicates(root: Path) -> set[str]:
    """The predicates that occur in a run.

    Raises UserError: it is not a run, or a shard is missing or damaged.
    """
    found: set[str] = set()
    for table in iter_tables(root, ("relations",)):
        found.update(pc.unique(_field(table["relations"], "predicate")).to_pylist())
    return found


def _add(measures: Measures, table: pa.Table) -> None:
    measures.images.update(_frequencies(table["split"]))
    failed = table.filter(pc.equal(table["status"], "error"))
    measures.errors.update(_kind(error or "unknown") for error in failed["error"].to_pylist())
    for name in ("objects", "captions", "triplets", "pairs", "relations"):
        measures.totals[name] += pc.sum(pc.list_value_length(table[name])).as_py() or 0
    measures.totals["matched_triplets"] += _matched(table["triplets"])
    measures.totals["images_without_relations"] += int((_lengths(table["relations"]) == 0).sum() - failed.num_rows)
    measures.categories.update(_frequencies(_field(table["objects"], "category")))
    predicates = _field(table["relations"], "predicate")
    measures.predicates.update(_frequencies(predicates))
    _add_levels(measures, table["relations"], predicates)


def _add_levels(measures: Measures, relations: pa.ChunkedArray, predicates: pa.ChunkedArray) -> None:
    confidence = pc.fill_null(_field(relations, "confidence"), 1.0)
    owner = pc.list_parent_indices(relations.combine_chunks())
    for threshold, level in measures.levels.items():
        # Compared in float32, as stored: 0.2 in the file is a little more than 0.2.
        kept = pc.greater_equal(confidence, pa.scalar(np.float32(threshold), pa.float32()))
        level.relations += pc.sum(kept).as_py() or 0
        level.images += len(pc.unique(pc.filter(owner, kept.combine_chunks())))
        level.predicates.update(pc.unique(pc.filter(predicates, kept)).to_pylist())


def _matched(triplets: pa.ChunkedArray) -> int:
    both = pc.and_(pc.is_valid(_field(triplets, "subject_category")), pc.is_valid(_field(triplets, "object_category")))
    return pc.sum(both).as_py() or 0


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy()


def _field(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """One field of a list-of-structs column, flattened."""
    return pc.struct_field(pc.list_flatten(column), name)


def _frequencies(values: pa.ChunkedArray) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(values).to_pylist()}


def _kind(error: str) -> str:
    """An error without what is particular to one image: its paths, quoted names and numbers."""
    kind = re.sub(r"'[^']*'|\"[^\"]*\"", "…", error)
    kind = re.sub(r"\S*/\S*", "…", kind)
    return re.sub(r"\d+(x\d+)?", "N", kind)
