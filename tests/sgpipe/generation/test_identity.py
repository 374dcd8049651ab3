from pathlib import Path
from typing import Any

import pytest

from sgpipe.errors import UserError
from sgpipe.generation.identity import identity
from sgpipe.recipe import Recipe
from sgpipe.utils.hashing import differences, fingerprint


def parts(**overrides) -> dict:
    values: dict = {}
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        values.setdefault(section, {})[name] = value
    return identity(Recipe.model_validate(values), {})


@pytest.mark.parametrize(
    "setting",
    [
        {"caption__batch_size": 1},
        {"parse__batch_size": 3},
        {"tag__device": "cpu"},
        {"tag__resources": {"actors": 2, "cpus": 2}},
        {"engine__unit_size": 7},
        {"engine__address": "auto"},
    ],
)
def test_what_moves_work_around_is_not_part_of_it(setting):
    assert fingerprint(parts(**setting)) == fingerprint(parts())


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"tag__threshold": 0.3}, "tag.threshold: 0.05 then, 0.3 now"),
        ({"pair__match": "substring"}, "pair.match: 'head' then, 'substring' now"),
        ({"tag__resources": {"gpus": 1}}, "tag.dtype: 'auto on a CPU' then, 'auto on a GPU' now"),
        ({"parse__model": "other"}, "parse.model: "),
        ({"tag__compile": True}, "tag.compile: "),
    ],
)
def test_what_changes_labels_is_told_by_name(setting, line):
    changed = parts(**setting)
    assert fingerprint(changed) != fingerprint(parts())
    (told,) = differences(parts(), changed)
    assert told.startswith(line)


def test_settings_of_marks_count_only_with_them_and_the_url_never():
    asked = {"pair__candidates": "marks", "pair__model": "m", "pair__endpoint": "http://a/v1"}
    more = {"pair__max_marks": 9, "pair__samples": 3, "pair__temperature": 1.0, "pair__model": "n"}
    for key, value in more.items():
        assert fingerprint(parts(**{key: value})) == fingerprint(parts())
        assert fingerprint(parts(**(asked | {key: value}))) != fingerprint(parts(**asked))
    seeded = [Recipe.model_validate({"seed": seed, "pair": {"candidates": "marks"}}) for seed in (0, 1)]
    assert [identity(recipe, {})["pair"]["seed"] for recipe in seeded] == [0, 1]
    moved = asked | {"pair__endpoint": "http://b/v1", "pair__requests": {"key": "OTHER"}, "pair__device": "cpu"}
    assert parts(**moved) == parts(**asked)
    assert "http" not in str(parts(**asked))


def test_stages_that_share_a_gpu_are_as_those_that_ask_for_one():
    recipe = Recipe.model_validate({"caption": {"captioner": "c"}, "tag": {"tagger": "t"}})
    shared = identity(recipe, {}, {"caption"})
    assert (shared["caption"]["dtype"], shared["tag"]["dtype"]) == ("auto on a GPU", "auto on a CPU")
    asked = {"caption": {"captioner": "c", "resources": {"gpus": 0.5}}, "tag": {"tagger": "t"}}
    assert identity(Recipe.model_validate(asked), {}) == shared


def test_the_weights_of_a_named_clip_model_count_by_their_content(tmp_path):
    file, copy = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    file.write_bytes(b"1")
    copy.write_bytes(b"1")
    tagged, again = (parts(tag__method="clip", tag__tagger=f"ViT-B-32:{each}") for each in (file, copy))
    assert tagged == again
    copy.write_bytes(b"2")
    (told,) = differences(tagged, parts(tag__method="clip", tag__tagger=f"ViT-B-32:{copy}"))
    assert told.startswith("tag.tagger: 'ViT-B-32:sha256:")
    assert parts(tag__method="clip", tag__tagger="ViT-B-32:laion2b")["tag"]["tagger"] == "ViT-B-32:laion2b"


def test_a_calibration_counts_by_its_content(tmp_path):
    file, copy = tmp_path / "a.json", tmp_path / "b.json"
    file.write_text("1", encoding="utf-8")
    copy.write_text("1", encoding="utf-8")
    calibrated = parts(tag__calibration=file)
    assert "calibration" not in parts()["tag"]
    assert fingerprint(parts(tag__calibration=copy)) == fingerprint(calibrated)
    assert fingerprint(parts(tag__calibration=copy, tag__precision=0.9)) != fingerprint(calibrated)
    copy.write_text("2", encoding="utf-8")
    (told,) = differences(calibrated, parts(tag__calibration=copy))
    assert told.startswith("tag.calibration: ")
    with pytest.raises(UserError, match="no such file"):
        parts(tag__calibration=tmp_path / "c.json")


def test_sampling_settings_count_only_where_a_captioner_samples():
    assert fingerprint(parts(caption__samples=3)) == fingerprint(parts())
    with_captioner = {"caption__captioner": "hub/blip"}
    assert fingerprint(parts(**with_captioner, caption__samples=3)) != fingerprint(parts(**with_captioner))
    beam = {**with_captioner, "caption__decoding": "beam"}
    published = parts(**beam, caption__repetition_penalty=1.1, caption__top_k=50)
    assert fingerprint(published) == fingerprint(parts(**beam))


@pytest.mark.parametrize(
    ("method", "ignored"),
    [
        ("clip", {"tag__dtype": "bfloat16"}),
        *(
            (method, {"tag__short_side": 640, "tag__vocabulary": "image"})
            for method in ("clip", "vlm", "all", "overlap")
        ),
        ("overlap", {"tag__tagger": "hub/other", "tag__threshold": 0.5}),
    ],
)
def test_settings_that_a_method_does_not_use_do_not_count(method, ignored):
    used = {"tag__tagger": "hub/model", "tag__method": method}
    assert fingerprint(parts(**used)) == fingerprint(parts(**used | ignored))


def test_with_a_vocabulary_per_image_its_size_and_the_seed_decide_the_relations():
    def of_tag(seed=0, **tag):
        return identity(Recipe(seed=seed, tag={"tagger": "hub/model", **tag}), {})["tag"]

    assert of_tag(seed=1, vocabulary_others=5) == of_tag()
    per_image = of_tag(vocabulary="image")
    others = of_tag(), of_tag(vocabulary="image", vocabulary_others=5), of_tag(seed=1, vocabulary="image")
    assert all(each != per_image for each in others)


def test_the_bytes_of_a_model_count_and_its_place_does_not(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    a, b = (parts(tag__tagger=str(tmp_path / name)) for name in "ab")
    assert fingerprint(a) == fingerprint(b)
    (tmp_path / "b" / "model.safetensors").write_bytes(b"others")
    assert fingerprint(parts(tag__tagger=str(tmp_path / "b"))) != fingerprint(a)


HERE, THERE = "http://localhost:8000/v1", "http://gpu-7:9000/v1"


def served(section: str, endpoint: str | None = HERE, **settings: Any) -> dict[str, Any]:
    model = {"caption": "captioner", "parse": "model", "tag": "tagger"}[section]
    others = {"parse": {"parser": "llm"}, "tag": {"method": "vlm"}}.get(section, {})
    values = {model: "org/model", "endpoint": endpoint} | others | settings
    return identity(Recipe.model_validate({section: values}), {})


@pytest.mark.parametrize("section", ["caption", "parse", "tag"])
def test_the_address_is_not_part_of_it(section: str) -> None:
    assert fingerprint(served(section)) == fingerprint(served(section, THERE))
    assert fingerprint(served(section)) == fingerprint(served(section, requests={"in_flight": 2, "key": "OTHER"}))
    assert "localhost" not in str(served(section))
    assert served(section)[section]["endpoint"] == "served"


@pytest.mark.parametrize(("section", "model"), [("caption", "captioner"), ("parse", "model"), ("tag", "tagger")])
def test_the_model_is(section: str, model: str) -> None:
    (told,) = differences(served(section), served(section, **{model: "org/other"}))
    assert told.endswith("'org/model' then, 'org/other' now")


def test_a_folder_of_the_same_name_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = served("caption")
    (tmp_path / "org/model").mkdir(parents=True)
    (tmp_path / "org/model/config.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert served("caption") == before
