"""Which models the cache of the hub has, with all their weights."""

import errno
import json
from pathlib import Path

import pytest

from sgpipe.errors import StoreError
from sgpipe.files.hub import missing_models, naming_hub
from sgpipe.recipe import Recipe, hub_models

NAME = "user/model"
SETTINGS = ("config.json", "tokenizer_config.json")
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("files", "complete"),
    [
        ((), False),
        (("model.safetensors",), False),
        (("config.json", "tf_model.h5"), False),
        (("config.json", "model.safetensors"), False),
        ((*SETTINGS, "model.safetensors"), True),
        ((*SETTINGS, "pytorch_model.bin"), True),
        ((*SETTINGS, "model.safetensors.index.json", SHARDS[0]), False),
        ((*SETTINGS, "model.safetensors.index.json", *SHARDS), True),
        ((*SETTINGS, "pytorch_model.bin.index.json", "model.safetensors"), True),
    ],
)
def test_a_model_is_cached_with_its_settings_and_all_its_weights(
    files: tuple[str, ...], complete: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--user--model"
    for folder in ("refs", "snapshots/abc"):
        (model / folder).mkdir(parents=True)
    (model / "refs/main").write_text("abc")
    shards = SHARDS if "model.safetensors.index.json" in files else ["pytorch_model-00001-of-00001.bin"]
    for file in files:
        (model / "snapshots/abc" / file).write_text(json.dumps({"weight_map": dict(enumerate(shards))}))
    assert missing_models([NAME]) == ([] if complete else [NAME])
    for damaged in ("{", "{}", '{"weight_map": 5}'):
        (model / "snapshots/abc/model.safetensors.index.json").write_text(damaged)
        assert missing_models([NAME]) == [NAME]


def test_only_names_on_the_hub_are_looked_for(tmp_path: Path) -> None:
    def models(detector: str, captioner: str, **tag: str) -> list[str]:
        settings = {"detect": {"detector": detector}, "caption": {"captioner": captioner}, "tag": tag}
        return hub_models(Recipe.model_validate(settings))

    assert models("a/b", "c/d", tagger="a/b") == ["a/b", "c/d"]
    assert models(str(tmp_path), "MINIWORLD", tagger="s3://bucket/tagger") == []
    assert models("a/b", "c/d", method="all", tagger="e/f") == ["a/b", "c/d"]
    assert models("a/b", "c/d", method="clip", tagger="ViT-B-32:openai") == []
    served = {"endpoint": "http://localhost:1/v1", "captioner": "c/d"}
    assert hub_models(Recipe.model_validate({"caption": served, "detect": {"detector": "a/b"}})) == ["a/b"]
    assert hub_models(Recipe.model_validate({"detect": {"detector": "a/b"}}), ["detect"]) == []


def test_a_cache_on_a_full_disk_is_named() -> None:
    with (
        pytest.raises(StoreError, match=r"^the model a/b: no space is left for it in .*hub$"),
        naming_hub("the model a/b"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
