"""What all forms of an audit, and all ways to count, must agree on."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from markupsafe import escape
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.stats.measures import distinct_predicates, measure
from sgpipe.storage.manifest import Manifest

WIDE = {"COLUMNS": "400"}  # no line of a table is broken


class Texts(HTMLParser):
    """The cells of tables, row by row, and every tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data):
        if self._in_cell:
            self.rows[-1][-1] += data


def invoke(*arguments: object):
    result = CliRunner().invoke(app, ["stats", *map(str, arguments)], env=WIDE)
    assert result.exit_code == 0, result.output
    return result


def assert_forms_agree(root: Path, folder: Path, *options: object) -> None:
    """The JSON of a run, its page and its tables say the same."""
    report = json.loads(invoke(root, "--json", "--html", folder / "r.html", *options).stdout)
    text = (folder / "r.html").read_text(encoding="utf-8")
    page = {tuple(" ".join(cell.split()) for cell in row) for row in Texts(text).rows}
    terminal = invoke(root, *options).stdout
    table = {
        tuple(cell.strip() for cell in line.strip("│").split("│")) for line in terminal.splitlines() if "│" in line
    }
    for row in _rows(report):
        for rows in (page, table):
            assert any(cells[0].startswith(row[0]) and cells[1 : len(row)] == row[1:] for cells in rows if cells), row
    for finding in report["findings"]:
        assert str(escape(finding["text"])) in text
        assert finding["text"] in terminal


def _rows(report: dict) -> list[tuple[str, ...]]:
    """The first cells of rows that both kinds of tables must have."""
    totals, yields = report["totals"], report["yields"]
    counts = [("error rows", f"{sum(report['errors'].values()):,}"), ("boxes", f"{totals['objects']:,}")]
    for name, key, unit in (
        ("triplets parsed", "triplets", "caption"),
        ("triplets with both ends matched", "matched_triplets", "triplet"),
        ("candidate relation texts", "candidate_texts", "matched triplet"),
        ("relations", "relations", "candidate text"),
        ("relations of confidence ≥ 0.20", "kept_relations", "relation"),
    ):
        counts.append((name, f"{totals[key]:,}", "" if yields[key] is None else f"{yields[key]:.2f} per {unit}"))
    levels = [
        (f"{t['threshold']:.2f}", f"{t['relations']:,}", f"{t['predicate_kinds']:,}", f"{t['images']:,}",
         f"{t['per_image']:.2f}", f"{t['per_pair']:.2f}")
        for t in report["thresholds"] if t["relations"]
    ]  # fmt: skip
    predicates = [
        (name, f"{count:,}", f"{count / totals['relations']:.1%}")
        for name, count in list(report["predicates"].items())[:15]
    ]
    triplets = [(t["subject"], t["predicate"], t["object"], f"{t['relations']:,}") for t in report["triplets"][:10]]
    reasons = [(reason, f"{count:,}") for reason, count in (report["without_relations"] | report["errors"]).items()]
    health = [
        (check["title"], f"{check['count']:,}", f"{check['share']:.1%} of {check['of']}")
        for check in report["health"] if check["count"]
    ]  # fmt: skip
    return [*counts, *levels, *predicates, *triplets, *reasons, *health]


def read(root: Path) -> pa.Table:
    """The shards as pyarrow reads them, past everything that is tested."""
    return pa.concat_tables([pq.read_table(root / shard.file) for shard in Manifest.load(root).shards])


def column(rows: pa.Table, noun: str, field: str) -> pa.Array:
    return pc.struct_field(pc.list_flatten(rows[noun]), field)


def frequencies(values: pa.Array) -> dict[str, int]:
    return dict(Counter(values.to_pylist()))


def assert_totals_are_pyarrows(root: Path, rows: pa.Table) -> None:
    measures = measure(root)
    for noun in ("objects", "captions", "triplets", "pairs", "relations"):
        assert measures.totals[noun] == (pc.sum(pc.list_value_length(rows[noun])).as_py() or 0)
    assert measures.images == frequencies(rows["split"])
    assert measures.datasets == frequencies(rows["dataset"])
    assert sum(measures.errors.values()) == frequencies(rows["status"]).get("error", 0)
    assert measures.totals["distinct_captions"] == pc.count_distinct(column(rows, "captions", "text")).as_py()
    different = sum(len({caption["text"] for caption in captions}) for captions in rows["captions"].to_pylist())
    assert measures.totals["different_captions"] == different
    assert measures.totals["candidate_texts"] == len(pc.list_flatten(column(rows, "pairs", "predicates")))
    ends = [pc.is_valid(column(rows, "triplets", f"{end}_category")) for end in ("subject", "object")]
    assert measures.totals["matched_triplets"] == (pc.sum(pc.and_(*ends)).as_py() or 0)
    assert measures.predicates == frequencies(column(rows, "relations", "predicate"))
    assert measures.categories == frequencies(column(rows, "objects", "category"))
    assert list(measures.predicates.values()) == sorted(measures.predicates.values(), reverse=True)
    assert distinct_predicates(root) == set(measures.predicates)


def assert_thresholds_are_numpys(root: Path, rows: pa.Table) -> None:
    relations = rows["relations"].combine_chunks()
    owner = pc.list_parent_indices(relations).to_numpy()
    flat = pc.list_flatten(relations)
    confidence = pc.fill_null(pc.struct_field(flat, "confidence"), 1).to_numpy()
    names = np.array(pc.struct_field(flat, "predicate").to_pylist())
    pairs = np.stack([owner, *(pc.struct_field(flat, end).to_numpy() for end in ("subject", "object"))])
    levels = {level.threshold: level for level in measure(root).thresholds}
    assert list(levels) == [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6]
    for threshold, level in levels.items():
        kept = confidence >= np.float32(threshold)
        assert level.relations == kept.sum()
        assert level.images == len(np.unique(owner[kept]))
        assert level.pairs == len(np.unique(pairs[:, kept], axis=1).T)
        assert level.predicate_kinds == len(np.unique(names[kept]))
        if level.relations:
            assert level.per_image == pytest.approx(kept.sum() / level.images)
            assert level.per_pair == pytest.approx(kept.sum() / level.pairs)
