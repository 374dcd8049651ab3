"""What all forms of an audit must agree on."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

from markupsafe import escape

from tests.sgpipe.stats.runs import invoke


def cells_of(page: str) -> set[tuple[str, ...]]:
    """The cells of tables, row by row."""
    rows = [
        re.findall(r"<t[hd][ >].*?</t[hd]>", row, re.DOTALL)
        for row in re.findall("<tr.*?</tr>", page, re.DOTALL)
    ]
    return {
        tuple(" ".join(unescape(re.sub("<[^>]*>", "", cell)).split()) for cell in cells)
        for cells in rows
    }


def assert_forms_agree(root: Path, folder: Path, *options: object) -> dict:
    """The JSON of a run, which is returned, its page and its tables say the same."""
    report = json.loads(
        invoke("stats", root, "--json", "--html", folder / "r.html", *options).stdout
    )
    text = (folder / "r.html").read_text(encoding="utf-8")
    page = cells_of(text)
    terminal = invoke("stats", root, *options).stdout
    assert terminal.startswith("What does it contain?\n")
    assert terminal.index("Can I train on it?") < terminal.index("┃" if "┃" in terminal else "│")
    lines = [line.strip("│").split("│") for line in terminal.splitlines() if "│" in line]
    table = {tuple(cell.strip() for cell in cells) for cells in lines}
    for row in _rows(report):
        for rows in (page, table):
            assert any(
                cells[0].startswith(row[0]) and cells[1 : len(row)] == row[1:]
                for cells in rows
                if cells
            ), row
    for finding in report["findings"]:
        assert str(escape(finding["text"])) in text
        assert finding["text"] in terminal
    return report


def _rows(report: dict) -> list[tuple[str, ...]]:
    """The first cells of rows that both kinds of tables must have."""
    totals = report["totals"]
    share = report["yields"]["relations"]
    rows = [
        ("error rows", f"{sum(report['errors'].values()):,}"),
        ("boxes", f"{totals['objects']:,}"),
    ]
    per_text = [] if share is None else [f"{share:.2f} per candidate text"]
    rows.append(("relations", f"{totals['relations']:,}", *per_text))
    for level in report["thresholds"]:
        if level["relations"]:
            counts = (f"{level[name]:,}" for name in ("relations", "predicate_kinds", "images"))
            rows.append((f"{level['threshold']:.2f}", *counts))
    rows += [
        (t["subject"], t["predicate"], t["object"], f"{t['relations']:,}")
        for t in report["triplets"][:10]
    ]
    rows += [
        (reason, f"{count:,}")
        for reason, count in (report["without_relations"] | report["errors"]).items()
    ]
    return rows + [
        (check["title"], f"{check['count']:,}") for check in report["health"] if check["count"]
    ]
