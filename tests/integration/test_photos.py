"""`sgpipe label` without options, as a user runs it: models come from a stub of the hub, then from
the cache alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.clip_checkpoints import make_clip
from tests.factories import make_blip
from tests.sgpipe.export.hub_stub import TOKEN, HubStub, serving
from tests.sgpipe.stages.detect.detectors import make_grounding_dino
from tests.values import values_of

ROOT = Path(__file__).parents[2]
BLIP = "Salesforce/blip-image-captioning-base"
DINO = "IDEA-Research/grounding-dino-tiny"
CLIP = "openai/clip-vit-base-patch32"
OTHERS = ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack")  # that nobody needs


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubStub]:
    root = tmp_path_factory.mktemp("hub")
    make_blip(root / BLIP)
    make_grounding_dino(root / DINO)
    make_clip(root / CLIP)
    stub = HubStub()
    for name in (BLIP, DINO, CLIP):
        files = {path.name: path.read_bytes() for path in (root / name).iterdir()}
        stub.repositories[f"models/{name}"] = files | dict.fromkeys(OTHERS, bytes(1000))
    safetensors = root / CLIP / "model.safetensors"  # an old model has weights of PyTorch alone
    torch.save(load_file(safetensors), root / OTHERS[0])
    old = stub.repositories[f"models/{CLIP}"]
    del old[safetensors.name]
    old[OTHERS[0]] = (root / OTHERS[0]).read_bytes()
    with serving(stub):
        yield stub


def sgpipe(
    *words: object, cache: Path, endpoint: str, offline: bool = False
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(cache),
        "HF_ENDPOINT": endpoint,
    }
    environment |= {
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_TOKEN": TOKEN,
    }
    command = [sys.executable, "-c", "from sgpipe.cli.main import main; main()", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_photographs_are_labelled_with_models_of_the_hub(hub: HubStub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    endpoint = hub.url
    nowhere = "http://127.0.0.1:9"
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")

    def label(name: str, *words: str, **where: object) -> subprocess.CompletedProcess[str]:
        return sgpipe(
            "label", photos, "--out", tmp_path / name, "--json", *words, cache=cache, **where
        )

    for offline, place in ((True, endpoint), (False, nowhere)):
        refused = label("refused", endpoint=place, offline=offline)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
        assert all(
            name in refused.stderr
            for name in (BLIP, DINO, CLIP, "`sgpipe doctor --recipe photos --fetch`")
        )
    assert not (tmp_path / "refused").exists()

    first = label("first", endpoint=endpoint)
    assert first.returncode == 0, first.stderr
    announced = [line for line in first.stderr.splitlines() if line.startswith("downloading ")]
    assert announced == [f"downloading {DINO}, {BLIP}, {CLIP}: about 0.0 GB into {cache / 'hub'}"]
    rows = list(map(json.loads, first.stdout.splitlines()))
    assert [(row["status"], len(row["captions"])) for row in rows] == [("ok", 10)] * 2
    assert set(values_of((tmp_path / "first").iterdir(), "name")) == {
        f"{n}.png.relations.png" for n in range(2)
    }
    unneeded = {path for path in hub.downloads if path.endswith(OTHERS)}
    assert unneeded == {f"{hub.commit_of(f'/{CLIP}/resolve/')}/{OTHERS[0]}"}

    hub.downloads.clear()
    for name, place in (("again", endpoint), ("offline", nowhere)):
        second = label(name, endpoint=place)
        assert (second.returncode, second.stdout) == (0, first.stdout), second.stderr
        assert "downloading" not in second.stderr
    assert hub.downloads == []


def test_doctor_lists_and_fetches_the_models_of_a_recipe(hub: HubStub, tmp_path: Path) -> None:
    where: dict[str, Any] = {"cache": tmp_path / "cache", "endpoint": hub.url}
    listed = sgpipe("doctor", "--recipe", "photos", **where)
    assert (listed.returncode, listed.stdout.count("missing from")) == (1, 3), listed.stderr
    # after its size
    hub.failures[f"{hub.commit_of(f'/{BLIP}/resolve/')}/model.safetensors"] = [
        0,
        *[500] * 99,
    ]
    halfway = sgpipe("doctor", "--recipe", "photos", "--fetch", **where)
    assert halfway.returncode == 1
    assert halfway.stderr.splitlines()[-1].endswith("; the same command resumes the download")
    hub.failures.clear()
    fetched = sgpipe("doctor", "--recipe", "photos", "--fetch", **where)
    assert (fetched.returncode, fetched.stdout.count(f"in {tmp_path}")) == (0, 3), fetched.stderr
    [weights] = (tmp_path / "cache/hub" / f"models--{BLIP.replace('/', '--')}").glob(
        "snapshots/*/model.safetensors"
    )
    weights.unlink()  # a download that broke off
    checks = json.loads(
        sgpipe("doctor", "--recipe", "photos", "--json", **where, offline=True).stdout
    )
    assert dict(values_of(checks, "name", "state")) == {
        DINO: "ok",
        BLIP: "bad",
        CLIP: "ok",
    }
    wrong = sgpipe(
        "doctor", "--recipe", "photos", "--set", "tag.tagger=no/such", "--fetch", **where
    )
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1), wrong.stderr
    assert "the model no/such is not on the hub" in wrong.stderr
