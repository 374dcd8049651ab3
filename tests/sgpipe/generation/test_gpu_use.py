"""What a run says of the GPUs that its stages compute on. Without a GPU, the tag stage is told that it has one."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sgpipe.errors import UserError
from sgpipe.generation.run import generate
from sgpipe.recipe import load_recipe
from sgpipe.stages.tag.stage import TagStage
from sgpipe.storage.manifest import Manifest
from sgpipe.utils.console import Progress
from tests.detections import CAPTIONS, CATEGORIES, make_coco
from tests.factories import untrained_tagger

USE = {
    "gpu": "H100",
    "memory": 2_500_000_000,
    "attention": "grid_sample",
    "compilation": 40.0,
    "compile_error": "no g++",
}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Of a run in four shards."""
    files = make_coco(tmp_path / "coco", images=8)
    untrained_tagger(tmp_path / "tagger", [*CAPTIONS, *CATEGORIES.values(), "no objects"])
    splits = {"val": {"annotations": files.annotations, "images": files.images, "captions": files.captions}}
    made: dict[str, Any] = {"source.splits": splits, "caption.captioner": None, "engine.unit_size": 2}
    return made | {"tag.tagger": str(tmp_path / "tagger"), "tag.short_side": 64, "tag.long_side": 96}


def run(settings: dict[str, Any], out: Path) -> str:
    """What is said."""
    said = io.StringIO()
    generate(load_recipe("coco", settings), out, Progress(Console(file=said, width=200)))
    return said.getvalue()


def test_gpus_are_in_the_log_and_the_manifest(
    tmp_path: Path, settings: dict[str, Any], in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TagStage, "gpu_use", lambda stage: dict(USE))
    said = run(settings, tmp_path / "out")
    assert said.count("tag computes on H100, deformable attention by grid_sample\n") == 1
    assert said.count("NOTE: tag continues without torch.compile: no g++\n") == 1
    assert "; peak GPU memory: tag 2.5 GB\n" in said
    shards = Manifest.load(tmp_path / "out").shards
    assert len(shards) == 4
    assert [shard.gpus for shard in shards] == 4 * [{"tag": {k: v for k, v in USE.items() if k != "compilation"}}]
    assert [shard.seconds.get("compilation", 0.0) for shard in shards] == [40.0, 0.0, 0.0, 0.0]
    assert all(shard.seconds["tag"] >= 0 for shard in shards)


def test_a_run_on_cpus_says_nothing_of_gpus(tmp_path: Path, settings: dict[str, Any], in_this_process: None) -> None:
    said = run(settings, tmp_path / "out")
    assert "utilization: " in said
    assert "GPU" not in said
    assert [shard.gpus for shard in Manifest.load(tmp_path / "out").shards] == [{}, {}, {}, {}]


def test_a_run_does_not_go_on_with_other_rounding(
    tmp_path: Path, settings: dict[str, Any], in_this_process: None
) -> None:
    run(settings, tmp_path / "out")
    with pytest.raises(UserError, match=r"\n  tag\.compile: False then, True now$"):
        run(settings | {"tag.compile": True}, tmp_path / "out")
