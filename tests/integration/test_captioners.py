"""`sgpipe generate` and `sgpipe label` with a vision-language captioner, on images of COCO."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sgpipe.records import Record
from sgpipe.storage.manifest import MANIFEST
from sgpipe.storage.shards import iter_records
from sgpipe.storage.verify import verify
from tests.factories import untrained_tagger
from tests.vlm_checkpoints import make_vlm

ROOT = str(Path(__file__).parents[2])
IMAGES = 8
SETTINGS = ("caption.samples=2", "caption.max_tokens=12", "tag.short_side=160", "tag.long_side=240")


@pytest.fixture(scope="module")
def dataset(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations of the images that are there, and a tagger that knows their classes."""
    source, folder = oracle / "data" / "coco_mini", tmp_path_factory.mktemp("coco")
    annotations = json.loads((source / "instances_val2017.json").read_text())
    (folder / "annotations").mkdir()
    (folder / "val2017").symlink_to(source / "images_val2017")
    there = [image for image in annotations["images"] if (folder / "val2017" / image["file_name"]).exists()][:IMAGES]
    kept = {image["id"] for image in there}
    own = [each for each in annotations["annotations"] if each["image_id"] in kept]
    changed = {**annotations, "images": there, "annotations": own}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(changed))
    untrained_tagger(folder / "tagger", [category["name"] for category in annotations["categories"]])
    return folder


def start(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", "from sgpipe.cli.main import main; main()", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": ROOT, "RAY_worker_niceness": "0"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run(*arguments: object) -> str:
    process = start(*arguments)
    printed, said = process.communicate()
    assert process.returncode == 0, said
    assert "Traceback" not in said
    return printed


def arguments(dataset: Path, captioner: Path, out: Path, *more: str) -> list[object]:
    sets = [part for setting in (*SETTINGS, *more) for part in ("--set", setting)]
    splits = 'source.splits={"val": {"annotations": "annotations/instances_val2017.json", "images": "val2017"}}'
    data = ["--root", dataset, "--set", splits, "--tagger", dataset / "tagger"]
    return ["generate", "coco", *data, "--captioner", captioner, "--out", out, *sets]


def kill_in_the_middle(process: subprocess.Popen, out: Path) -> None:
    manifest = out / MANIFEST
    while process.poll() is None and not (manifest.exists() and manifest.read_bytes().count(b"\n") > 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def rows(out: Path) -> list[Record]:
    return list(iter_records(out))


def test_a_run_that_is_killed_and_goes_on_with_another_batch_size_has_the_same_rows(dataset, tmp_path):
    captioner = make_vlm(tmp_path / "captioner", "qwen3_vl")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(*arguments(dataset, captioner, whole, "caption.batch_size=8", "engine.cpus=2"))
    expected = rows(whole)
    assert [row.status for row in expected] == ["ok"] * IMAGES
    assert all(len(row.captions) == 2 and row.objects for row in expected)
    assert len({caption.text for row in expected for caption in row.captions}) > IMAGES
    one = ("engine.unit_size=1", "engine.cpus=1")
    kill_in_the_middle(start(*arguments(dataset, captioner, killed, "caption.batch_size=1", *one)), killed)
    assert 0 < len(rows(killed)) < IMAGES
    run(*arguments(dataset, captioner, killed, "caption.batch_size=3", *one))
    assert rows(killed) == expected
    assert verify(killed).ok


def test_label_takes_a_captioner(dataset, tmp_path):
    captioner = make_vlm(tmp_path / "captioner", "qwen3_vl")
    annotations = dataset / "annotations" / "instances_val2017.json"
    photo = dataset / "val2017" / json.loads(annotations.read_text())["images"][0]["file_name"]
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    models = ("--captioner", captioner, "--tagger", dataset / "tagger")
    found = json.loads(run("label", photo, "--boxes", annotations, *models, *sets, "--json", "--out", tmp_path / "out"))
    assert found["status"] == "ok"
    assert len(found["captions"]) == 2
