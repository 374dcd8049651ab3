"""Every row of the table of bad inputs, and that the page about them says the same."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from sgpipe.errors import UserError
from tests.bad_data.case import Case, Outcome
from tests.bad_data.page import PAGE, written
from tests.bad_data.table import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_what_becomes_of(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    made = case.make(folder)
    try:
        found = case.look(folder, made)
    except UserError as error:
        found = Outcome("refused", str(error))
    assert found.kind == case.kind, found.text
    assert re.search(case.pattern, found.text), found.text
    if case.kind == "refused":
        assert "\n" not in found.text


def test_the_table_is_as_large_as_promised() -> None:
    assert len(CASES) >= 60
    assert not [name for name, times in Counter(case.id for case in CASES).items() if times > 1]


def test_the_page_has_this_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "run: python -m tests.bad_data.page"
