"""The table of bad inputs as docs/faults.md shows it; `python -m tests.bad_data.page` writes it there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.bad_data.case import Case
from tests.bad_data.table import CASES

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- the table of bad inputs -->\n", "<!-- its end -->\n"
_OUTCOMES = {
    "refused": "refused in one line, exit code 2",
    "error row": "error row",
    "counted": "dropped or repaired, and counted",
    "found": "`sgpipe verify` finds it",
    "accepted": "accepted",
}


def as_markdown(cases: Iterable[Case]) -> str:
    """A row for each group and outcome."""
    rows: dict[tuple[str, str], dict[str, None]] = {}
    for case in cases:
        place = rows.setdefault((case.group.removesuffix(", verified"), _OUTCOMES[case.kind]), {})
        place[case.what] = None
    lines = [f"| {group} | {outcome} | {' · '.join(inputs)} |" for (group, outcome), inputs in rows.items()]
    return "\n".join(["| input | outcome | which |", "|---|---|---|", *lines]) + "\n"


def written(page: str) -> str:
    """The page with the table in its place."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{as_markdown(CASES)}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
