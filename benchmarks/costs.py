"""The tables of costs that README.md quotes, as JSON lines: `python -m benchmarks.costs`, after
`make bench`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
LINES = RESULTS / "costs.jsonl"
PAGES = ("caption", "tagger", "train_step", "scale")

Line = dict[str, str | float]


def cost_lines() -> Iterator[Line]:
    """Yield a line for each row of each table of the pages."""
    for name in PAGES:
        page = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
        yield from page_lines(name, page)


def page_lines(name: str, page: str) -> Iterator[Line]:
    """Yield the rows of a page's tables, with the date of the measurement and the title of the
    table ("" if none).
    """
    (date,) = re.findall(r"^Machine: .*measured on (\S+),", page, re.MULTILINE)
    title = ""
    header: Sequence[str] = ()
    for text in page.splitlines():
        bold = re.fullmatch(r"\*\*(.+)\*\*", text)
        if bold:
            title = bold[1]
        if not text.startswith("|"):
            header = ()
            continue
        cells = [cell.strip() for cell in text.strip("|").split("|")]
        if not header:
            header = cells
        elif not set(text) <= set("|-"):
            figures = dict(zip(header[1:], map(_figure, cells[1:]), strict=True))
            yield {"page": name, "table": title, "row": cells[0], **figures, "date": date}


def _figure(cell: str) -> str | float:
    try:
        return float(cell.replace(",", ""))
    except ValueError:
        return cell


def main() -> None:
    lines = [json.dumps(line, ensure_ascii=False) for line in cost_lines()]
    LINES.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
