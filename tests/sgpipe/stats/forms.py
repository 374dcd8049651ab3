"""What all forms of an audit, and all ways to count, must agree on."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

from markupsafe import escape
from typer.testing import CliRunner

from sgpipe.cli.main import app

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


def assert_forms_agree(root: Path, folder: Path, *options: object) -> dict:
    """The JSON of a run, which is returned, its page and its tables say the same."""
    report = json.loads(invoke(root, "--json", "--html", folder / "r.html", *options).stdout)
    text = (folder / "r.html").read_text(encoding="utf-8")
    page = {tuple(" ".join(cell.split()) for cell in row) for row in Texts(text).rows}
    terminal = invoke(root, *options).stdout
    lines = [line.strip("│").split("│") for line in terminal.splitlines() if "│" in line]
    table = {tuple(cell.strip() for cell in cells) for cells in lines}
    for row in _rows(report):
        for rows in (page, table):
            assert any(cells[0].startswith(row[0]) and cells[1 : len(row)] == row[1:] for cells in rows if cells), row
    for finding in report["findings"]:
        assert str(escape(finding["text"])) in text
        assert finding["text"] in terminal
    return report


def _rows(report: dict) -> list[tuple[str, ...]]:
    """The first cells of rows that both kinds of tables must have."""
    totals, share = report["totals"], report["yields"]["relations"]
    rows = [("error rows", f"{sum(report['errors'].values()):,}"), ("boxes", f"{totals['objects']:,}")]
    per_text = [] if share is None else [f"{share:.2f} per candidate text"]
    rows.append(("relations", f"{totals['relations']:,}", *per_text))
    for level in report["thresholds"]:
        if level["relations"]:
            kept = (f"{level[name]:,}" for name in ("relations", "predicate_kinds", "images"))
            rows.append((f"{level['threshold']:.2f}", *kept))
    rows += [(t["subject"], t["predicate"], t["object"], f"{t['relations']:,}") for t in report["triplets"][:10]]
    rows += [(reason, f"{count:,}") for reason, count in (report["without_relations"] | report["errors"]).items()]
    return rows + [(check["title"], f"{check['count']:,}") for check in report["health"] if check["count"]]
