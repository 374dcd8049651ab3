"""Bad inputs of every kind and what becomes of them: a line that names the culprit, an error row, or a count."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from sgpipe.errors import UserError
from tests.bad_data import annotations, checkpoints, images, imports, shards
from tests.bad_data.case import Case, Outcome

CASES = [case for group in (images, annotations, imports, checkpoints, shards) for case in group.CASES]
NAMED = r"a\.json|rel\.json|captions\.json|captioner|tagger|config\.json|manifest|\.parquet|run"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_bad_input_has_the_expected_outcome(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    made = case.make(folder)
    try:
        outcome = case.process(folder, made)
    except UserError as error:
        outcome = Outcome("refused", str(error))
    assert outcome.kind == case.kind, outcome.text
    assert re.search(case.pattern, outcome.text), outcome.text
    if outcome.kind in ("refused", "found"):
        assert re.search(NAMED, outcome.text.replace(str(tmp_path), "")), outcome.text
        assert "\n" not in outcome.text


def test_names_of_cases_are_unique() -> None:
    assert not [name for name, times in Counter(case.id for case in CASES).items() if times > 1]
