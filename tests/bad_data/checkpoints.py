"""Damaged captioners and taggers, as the stages load them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sgpipe.recipe import CaptionConfig, TagConfig, packaged_model
from sgpipe.records import Box, Pair, Record
from sgpipe.stages.caption.stage import CaptionStage
from sgpipe.stages.tag.stage import TagStage
from tests.bad_data.case import Outcome, cases

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
Damage = Callable[[Path], object]


class Malicious:
    """An object that creates the file `trace` when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.trace,)


def run_captioner(folder: Path, checkpoint: Any) -> Outcome:
    stage = CaptionStage(
        CaptionConfig(captioner=str(folder / "captioner"), samples=1), {"val": folder}, 0
    )
    return _run(stage, folder)


def run_tagger(folder: Path, checkpoint: Any) -> Outcome:
    config = TagConfig(tagger=str(folder / "tagger"), short_side=64, long_side=64)
    return _run(TagStage(config, {"val": folder}, ["dog"]), folder)


def _run(stage: CaptionStage | TagStage, folder: Path) -> Outcome:
    try:
        stage.setup()
        Image.new("RGB", (64, 64)).save(folder / "1.png")
        box = Box("dog", 1, (0.0, 0.0, 30.0, 30.0))
        record = Record(
            "1", "coco", "val", "1.png", 64, 64, objects=[box, box], pairs=[Pair(0, 1, ["on"])]
        )
        stage([record])
    finally:
        assert not (folder / "trace").exists(), "the checkpoint executed code"
    return Outcome("accepted", f"{len(record.captions)} captions, {record.status}")


def copied(kind: Any, damage: Damage) -> Callable[[Path], object]:
    def make(folder: Path) -> object:
        shutil.copytree(packaged_model(kind), folder / kind)
        return damage(folder / kind)

    return make


def cut(name: str) -> Damage:
    def damage(folder: Path) -> None:
        data_bytes = (folder / name).read_bytes()
        (folder / name).write_bytes(data_bytes[: len(data_bytes) // 2])

    return damage


def gone(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def of_nan(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    for value in weights.values():
        if value.is_floating_point():
            value.fill_(torch.nan)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"weight": Malicious(folder.parent / "trace")}, folder / "pytorch_model.bin")


def without_tokenizer(folder: Path) -> None:
    for path in (*folder.glob("*token*"), *folder.glob("vocab*")):
        path.unlink()


def of_another_size(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    config.get("text_config", config)["intermediate_size"] += 8
    (folder / CONFIG).write_text(json.dumps(config))


_DAMAGES: tuple[tuple[str, Damage, str], ...] = (
    # the others are refused because of their damage
    ("undamaged", lambda folder: None, "accepted"),
    ("a missing folder", shutil.rmtree, "refused"), ("no config.json", gone(CONFIG), "refused"),
    ("config.json cut short", cut(CONFIG), "refused"), ("no weights", gone(WEIGHTS), "refused"),
    ("weights cut short", cut(WEIGHTS), "refused"), ("weights of another size", of_another_size, "refused"),
    ("NaN weights", of_nan, "refused"), ("a pickle that executes code", pickled, "refused"),
    ("no tokenizer", without_tokenizer, "refused"),
)  # fmt: skip

CASES = [
    case
    for kind, process in (("captioner", run_captioner), ("tagger", run_tagger))
    for case in cases(
        kind,
        process,
        ((name, copied(kind, damage), *outcome) for name, damage, *outcome in _DAMAGES),
    )
]
