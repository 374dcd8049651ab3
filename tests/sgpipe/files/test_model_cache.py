"""Models in object stores, fetched once and known by their hash, and those in the cache of the
hub.
"""

from __future__ import annotations

import errno
import json
import pickle
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import pytest

from sgpipe.errors import EngineError, StoreError, UserError, existing_model
from sgpipe.files import model_cache
from sgpipe.files.hub import missing_models, naming_hub
from sgpipe.files.model_cache import local_model, pin_model
from sgpipe.files.stores import ObjectInfo
from sgpipe.recipe import Recipe, hub_models, load_recipe, packaged_model, with_model_folders
from sgpipe.utils.hashing import model_sha256

URI = "s3://bucket/tagger"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "tokenizer/vocab.txt": b"a\nb",
}

NAME = "user/model"
SETTINGS = ("config.json", "tokenizer_config.json")
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


class Store:
    """Objects in memory, in the place of `StorePath`."""

    files: ClassVar[dict[str, bytes]]
    reads: ClassVar[list[str]]
    fails: ClassVar[list[str]]

    def __init__(self, uri: str, name: str = "") -> None:
        assert uri == URI
        self.name = name

    def __truediv__(self, name: str) -> Store:
        return Store(URI, name)

    def check(self) -> None: ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for name, data in self.files.items():
            yield ObjectInfo(name, len(data), str(hash(data)), datetime(2026, 1, 1, tzinfo=UTC))

    def get_file(self, path: Path) -> None:
        if self.name in self.fails:
            raise StoreError(f"{URI}/{self.name}: the store is gone")
        self.reads.append(self.name)
        path.write_bytes(self.files[self.name])


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path) -> type[Store]:
    monkeypatch.setenv("SGPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_cache, "StorePath", Store)
    Store.files = dict(FILES)
    Store.reads = []
    Store.fails = []
    return Store


def as_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_a_model_is_fetched_once_and_has_the_hash_of_its_folder(store, tmp_path):
    pinned = pin_model(URI)
    assert pinned == pin_model(URI) == pin_model(pinned)
    folder = Path(local_model(pinned))
    assert {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")
    } == FILES
    assert local_model(URI) == str(folder)
    assert sorted(store.reads) == sorted(FILES)
    assert (
        model_sha256(pinned)
        == model_sha256(str(folder))
        == model_sha256(str(as_folder(tmp_path / "own", FILES)))
    )


def test_other_names_stay_as_they_are(tmp_path):
    for name in ("roberta-base", str(tmp_path), "openai/clip:weights"):
        assert pin_model(name) == local_model(name) == name
    assert existing_model(URI) == URI
    with pytest.raises(UserError, match=r"no such folder: \./no/such"):
        local_model("./no/such")


def test_a_model_that_changes_is_another_one_and_a_run_keeps_the_one_that_it_started_with(
    store, tmp_path
):
    first = pin_model(URI)
    store.files["config.json"] = b'{"other": 1}'
    second = pin_model(URI)
    assert first != second
    assert Path(local_model(first), "config.json").read_bytes() == b"{}"
    shutil.rmtree(tmp_path / "cache")  # as on another machine
    assert Path(local_model(second), "config.json").read_bytes() == b'{"other": 1}'
    with pytest.raises(UserError, match="not the one that the run started with"):
        local_model(first)


def test_an_interrupted_download_leaves_nothing(store, tmp_path):
    store.fails = ["tokenizer/vocab.txt"]
    with pytest.raises(EngineError, match="the store is gone"):
        pin_model(URI)
    store.fails = []
    assert pin_model(URI)
    # the model, its listing, the lock
    assert len(list((tmp_path / "cache/models").glob("*/*"))) == 3


def test_processes_of_a_machine_wait_for_each_other(store):
    threads = [threading.Thread(target=local_model, args=(URI,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(store.reads) == sorted(FILES)


@pytest.mark.parametrize(
    "files",
    [
        {"last/config.json": b"1", "best/config.json": b"2", "log.txt": b""},
        {"open_clip_config.json": b"2", ".git/x": b""},
    ],
    ids=["of a training", "of open_clip"],
)
def test_other_forms_of_a_model(store, files):
    store.files = files
    assert [path.read_bytes() for path in Path(local_model(URI)).iterdir()] == [b"2"]


@pytest.mark.parametrize(
    ("files", "message"),
    [({}, "no config.json"), ({"a": b""}, "no config.json"), ({**FILES, "../x": b""}, "outside")],
)
def test_what_is_no_model_is_refused(store, files, message):
    store.files = files
    with pytest.raises(UserError, match=message):
        pin_model(URI)


def test_recipes_name_models_by_uri(store):
    store.files = {
        path.name: path.read_bytes()
        for path in packaged_model("tagger").iterdir()
        if path.is_file()
    }
    recipe = with_model_folders(
        load_recipe("miniworld", {"tag.tagger": URI, "caption.captioner": URI})
    )
    assert recipe.tag.tagger == recipe.caption.captioner == pin_model(URI)
    assert with_model_folders(recipe) == recipe
    assert model_sha256(recipe.tag.tagger) == model_sha256(str(packaged_model("tagger")))
    assert pickle.loads(pickle.dumps(recipe)) == recipe  # noqa: S301 - our own


@pytest.mark.parametrize(
    ("files", "complete"),
    [
        ((), False), (("model.safetensors",), False), (("config.json", "tf_model.h5"), False),
        (("config.json", "model.safetensors"), False), ((*SETTINGS, "model.safetensors"), True),
        ((*SETTINGS, "pytorch_model.bin"), True), ((*SETTINGS, "model.safetensors.index.json", SHARDS[0]), False),
        ((*SETTINGS, "model.safetensors.index.json", *SHARDS), True),
        ((*SETTINGS, "pytorch_model.bin.index.json", "model.safetensors"), True),
    ],
)  # fmt: skip
def test_a_model_is_cached_with_its_settings_and_all_its_weights(
    files: tuple[str, ...], complete: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--user--model"
    for folder in ("refs", "snapshots/abc"):
        (model / folder).mkdir(parents=True)
    (model / "refs/main").write_text("abc")
    shards = (
        SHARDS if "model.safetensors.index.json" in files else ["pytorch_model-00001-of-00001.bin"]
    )
    for file in files:
        (model / "snapshots/abc" / file).write_text(
            json.dumps({"weight_map": dict(enumerate(shards))})
        )
    assert missing_models([NAME]) == ([] if complete else [NAME])
    for damaged in ("{", "{}", '{"weight_map": 5}'):
        (model / "snapshots/abc/model.safetensors.index.json").write_text(damaged)
        assert missing_models([NAME]) == [NAME]


def test_only_names_on_the_hub_are_looked_for(tmp_path: Path) -> None:
    def models(detector: str, captioner: str, **tag: str) -> list[str]:
        settings = {
            "detect": {"detector": detector},
            "caption": {"captioner": captioner},
            "tag": tag,
        }
        return hub_models(Recipe.model_validate(settings))

    assert models("a/b", "c/d", tagger="a/b") == ["a/b", "c/d"]
    assert models(str(tmp_path), "MINIWORLD", tagger="s3://bucket/tagger") == []
    assert models("a/b", "c/d", method="all", tagger="e/f") == ["a/b", "c/d"]
    assert models("a/b", "c/d", method="clip", tagger="ViT-B-32:openai") == []
    served = {"endpoint": "http://localhost:1/v1", "captioner": "c/d"}
    assert hub_models(
        Recipe.model_validate({"caption": served, "detect": {"detector": "a/b"}})
    ) == ["a/b"]
    assert hub_models(Recipe.model_validate({"detect": {"detector": "a/b"}}), ["detect"]) == []


def test_a_cache_on_a_full_disk_is_named() -> None:
    with (
        pytest.raises(StoreError, match=r"^the model a/b: no space is left for it in .*hub$"),
        naming_hub("the model a/b"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
