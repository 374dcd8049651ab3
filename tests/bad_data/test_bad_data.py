"""Every kind of bad input has the outcome that the table in docs/faults.md promises."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from sgpipe.errors import UserError
from tests.bad_data.case import Case, Outcome
from tests.bad_data.page import PAGE, with_table
from tests.bad_data.table import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_bad_input_has_the_promised_outcome(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    made = case.make(folder)
    try:
        outcome = case.process(folder, made)
    except UserError as error:
        outcome = Outcome("refused", str(error))
    assert outcome.kind == case.kind, outcome.text
    assert re.search(case.pattern, outcome.text), outcome.text
    if case.kind == "refused":
        assert "\n" not in outcome.text


def test_names_of_cases_are_unique() -> None:
    assert not [name for name, times in Counter(case.id for case in CASES).items() if times > 1]


def test_the_documentation_has_this_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page) == page, "run: python -m tests.bad_data.page"
