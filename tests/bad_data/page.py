"""The table of bad inputs in docs/faults.md; `python -m tests.bad_data.page` regenerates it."""

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
    "counted": "dropped or corrected, and counted",
    "found": "`sgpipe verify` finds it",
    "accepted": "accepted",
}


def as_markdown(cases: Iterable[Case]) -> str:
    """A row per group and outcome."""
    rows: dict[tuple[str, str], dict[str, None]] = {}
    for case in cases:
        names = rows.setdefault((case.group.removesuffix(", verified"), _OUTCOMES[case.kind]), {})
        names[case.name] = None
    lines = [f"| {group} | {outcome} | {' · '.join(inputs)} |" for (group, outcome), inputs in rows.items()]
    return "\n".join(["| input | outcome | cases |", "|---|---|---|", *lines]) + "\n"


def with_table(page: str) -> str:
    """The page with an up-to-date table."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{as_markdown(CASES)}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
