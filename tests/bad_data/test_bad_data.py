"""Bad inputs of every kind and what becomes of them: a line that names the culprit, an error row,
or a count.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sgpipe.errors import UserError
from tests.bad_data import annotations, checkpoints, images, shards
from tests.bad_data.case import Outcome

CASES = [*images.CASES, *annotations.CASES, *checkpoints.CASES, *shards.CASES]
NAMED = (  # a file or a setting
    r"a\.json|captions\.json|captioner|tagger|config\.json|manifest|\.parquet|run"
)


@pytest.mark.parametrize(("make", "process", "kind", "pattern"), CASES)
def test_bad_input_has_the_expected_outcome(
    tmp_path: Path,
    make: Callable[[Path], Any],
    process: Callable[[Path, Any], Outcome],
    kind: str,
    pattern: str,
) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    bad_input = make(folder)
    try:
        outcome = process(folder, bad_input)
    except UserError as error:
        outcome = Outcome("refused", str(error))
    assert outcome.kind == kind, outcome.text
    assert re.search(pattern, outcome.text), outcome.text
    if kind in ("refused", "found"):
        assert re.search(NAMED, outcome.text.replace(str(tmp_path), "")), outcome.text
        assert "\n" not in outcome.text
