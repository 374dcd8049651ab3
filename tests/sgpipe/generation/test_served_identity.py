"""A run with served models is the same wherever they are served; another model is another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sgpipe.generation.identity import identity
from sgpipe.recipe import Recipe
from sgpipe.utils.hashing import differences, fingerprint

HERE, THERE = "http://localhost:8000/v1", "http://gpu-7:9000/v1"


def parts(section: str, endpoint: str | None = HERE, **settings: Any) -> dict[str, Any]:
    model = {"caption": "captioner", "parse": "model", "tag": "tagger"}[section]
    others = {"parse": {"parser": "llm"}, "tag": {"method": "vlm"}}.get(section, {})
    values = {model: "org/model", "endpoint": endpoint} | others | settings
    return identity(Recipe.model_validate({section: values}), {})


@pytest.mark.parametrize("section", ["caption", "parse", "tag"])
def test_the_address_is_not_part_of_it(section: str) -> None:
    assert fingerprint(parts(section)) == fingerprint(parts(section, THERE))
    assert fingerprint(parts(section)) == fingerprint(parts(section, requests={"in_flight": 2, "key": "OTHER"}))
    assert "localhost" not in str(parts(section))
    assert parts(section)[section]["endpoint"] == "served"


@pytest.mark.parametrize(("section", "model"), [("caption", "captioner"), ("parse", "model"), ("tag", "tagger")])
def test_the_model_is(section: str, model: str) -> None:
    (told,) = differences(parts(section), parts(section, **{model: "org/other"}))
    assert told.endswith("'org/model' then, 'org/other' now")


def test_served_here_and_there_differ() -> None:
    assert fingerprint(parts("caption")) != fingerprint(parts("caption", None))


def test_a_folder_of_the_same_name_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = parts("caption")
    (tmp_path / "org/model").mkdir(parents=True)
    (tmp_path / "org/model/config.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert parts("caption") == before
