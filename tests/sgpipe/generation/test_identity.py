"""What decides the labels of a run is part of its identity, and what only moves work around is
not.
"""

from pathlib import Path
from typing import Any

import pytest

from sgpipe.errors import UserError
from sgpipe.generation.identity import identity
from sgpipe.recipe import Recipe
from sgpipe.utils.hashing import differences, fingerprint

HERE = "http://localhost:8000/v1"
THERE = "http://gpu-7:9000/v1"
SERVED = {
    "caption": {"caption__captioner": "org/model", "caption__endpoint": HERE},
    "parse": {"parse__model": "org/model", "parse__parser": "llm", "parse__endpoint": HERE},
    "tag": {"tag__tagger": "org/model", "tag__method": "vlm", "tag__endpoint": HERE},
}
MARKS = {"pair__candidates": "marks", "pair__model": "m", "pair__endpoint": HERE}
BEAM = {"caption__captioner": "hub/blip", "caption__decoding": "beam"}
TAGGER = {"tag__tagger": "hub/model"}
PER_IMAGE = {**TAGGER, "tag__vocabulary": "image"}

SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"caption__batch_size": 1, "parse__batch_size": 3, "tag__device": "cpu"}),
    (
        {},
        {
            "tag__resources": {"actors": 2, "cpus": 2},
            "engine__unit_size": 7,
            "engine__address": "auto",
        },
    ),
    ({}, {"pair__max_marks": 9, "pair__samples": 3, "pair__temperature": 1.0, "pair__model": "n"}),
    (MARKS, {"pair__endpoint": THERE, "pair__requests": {"key": "OTHER"}, "pair__device": "cpu"}),
    ({}, {"caption__samples": 3}),  # without a captioner
    (BEAM, {"caption__repetition_penalty": 1.1, "caption__top_k": 50}),
    ({**TAGGER, "tag__method": "clip"}, {"tag__dtype": "bfloat16"}),
    *(
        ({**TAGGER, "tag__method": method}, {"tag__short_side": 640, "tag__vocabulary": "image"})
        for method in ("clip", "vlm", "all", "overlap")
    ),
    ({**TAGGER, "tag__method": "overlap"}, {"tag__tagger": "hub/other", "tag__threshold": 0.5}),
    (TAGGER, {"tag__vocabulary_others": 5}),
    (SERVED["tag"], {"tag__questions": "each"}),
    *((SERVED[section], {f"{section}__endpoint": THERE}) for section in SERVED),
    *(
        (SERVED[section], {f"{section}__requests": {"in_flight": 2, "key": "OTHER"}})
        for section in SERVED
    ),
]

CHANGED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"tag__threshold": 0.3}, "tag.threshold: 0.05 then, 0.3 now"),
    ({}, {"pair__match": "substring"}, "pair.match: 'head' then, 'substring' now"),
    ({}, {"tag__resources": {"gpus": 1}}, "tag.dtype: 'auto on a CPU' then, 'auto on a GPU' now"),
    ({}, {"parse__model": "other"}, "parse.model: "),
    ({}, {"tag__compile": True}, "tag.compile: "),
    *(
        (MARKS, {f"pair__{name}": 3}, f"pair.{name}: ")
        for name in ("max_marks", "samples", "temperature")
    ),
    (MARKS, {"pair__model": "n"}, "pair.model: 'm' then, 'n' now"),
    ({"caption__captioner": "hub/blip"}, {"caption__samples": 3}, "caption.samples: "),
    (PER_IMAGE, {"tag__vocabulary_others": 5}, "tag.vocabulary_others: "),
    (SERVED["tag"], {"tag__questions": "shared"}, "tag.questions: "),
    *(
        (SERVED[section], {f"{section}__{model}": "org/other"}, f"{section}.{model}")
        for section, model in (("caption", "captioner"), ("parse", "model"), ("tag", "tagger"))
    ),
]


def parts(seed: int = 0, **overrides: object) -> dict[str, Any]:
    values: dict[str, Any] = {"seed": seed}
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        values.setdefault(section, {})[name] = value
    return identity(Recipe.model_validate(values)).as_json()


@pytest.mark.parametrize(("settings", "more"), SAME)
def test_what_does_not_decide_labels_is_not_part_of_it(
    settings: dict[str, Any], more: dict[str, Any]
) -> None:
    assert fingerprint(parts(**settings | more)) == fingerprint(parts(**settings))
    assert "http" not in str(parts(**settings))


@pytest.mark.parametrize(("settings", "more", "line"), CHANGED)
def test_what_changes_labels_is_told_by_name(
    settings: dict[str, Any], more: dict[str, Any], line: str
) -> None:
    (difference,) = differences(parts(**settings), parts(**settings | more))
    assert difference.startswith(line)


def test_the_seed_counts_for_stages_that_draw() -> None:
    for settings, section in ((PER_IMAGE, "tag"), (MARKS, "pair")):
        assert [parts(seed, **settings)[section]["seed"] for seed in (0, 1)] == [0, 1]


def test_stages_that_share_a_gpu_are_as_those_that_ask_for_one() -> None:
    recipe = Recipe.model_validate({"caption": {"captioner": "c"}, "tag": {"tagger": "t"}})
    shared = identity(recipe, {"caption"}).as_json()
    assert (shared["caption"]["dtype"], shared["tag"]["dtype"]) == (
        "auto on a GPU",
        "auto on a CPU",
    )
    assert (
        parts(caption__captioner="c", caption__resources={"gpus": 0.5}, tag__tagger="t") == shared
    )


def test_models_and_calibrations_count_by_their_content(tmp_path: Path) -> None:
    def parts_of(file: Path) -> list[dict[str, Any]]:
        clip = {"tag__method": "clip", "tag__tagger": f"ViT-B-32:{file}"}
        return [parts(**clip), parts(tag__calibration=file), parts(tag__tagger=str(file.parent))]

    places = [tmp_path / name / "model.safetensors" for name in "ab"]
    for place in places:
        place.parent.mkdir()
        place.write_bytes(b"1")
    before = parts_of(places[0])
    assert parts_of(places[1]) == before
    assert parts(tag__calibration=places[0], tag__precision=0.9) != before[1]
    places[1].write_bytes(b"2")
    for first, other, name in zip(
        before, parts_of(places[1]), ("tagger", "calibration", "tagger"), strict=True
    ):
        (difference,) = differences(first, other)
        assert difference.startswith(f"tag.{name}: ")
    assert (
        parts(tag__method="clip", tag__tagger="ViT-B-32:laion2b")["tag"]["tagger"]
        == "ViT-B-32:laion2b"
    )
    with pytest.raises(UserError, match="no such file"):
        parts(tag__calibration=tmp_path / "c.json")


def test_a_folder_named_as_a_served_model_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = parts(**SERVED["caption"])
    assert before["caption"]["endpoint"] == "served"
    (tmp_path / "org/model").mkdir(parents=True)
    (tmp_path / "org/model/config.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert parts(**SERVED["caption"]) == before
