"""The image for CPUs, built of docker/Dockerfile on Debian's own Python, labels what sgpipe labels outside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sgpipe.storage.shards import iter_records
from tests.integration.docker.images import ROOT, Images, why_impossible

pytestmark = [pytest.mark.soak, pytest.mark.skipif(bool(why_impossible()), reason=f"{why_impossible()}")]


@pytest.fixture(scope="module")
def images() -> Iterator[Images]:
    with Images() as images:
        images.make_base(ROOT / "docker/Dockerfile")
        images.build(ROOT / "docker/Dockerfile", "sgpipe")
        yield images


def rows(run: Path) -> list[Any]:
    """The records of a run; confidences may differ by what two builds of PyTorch differ in."""
    found = [asdict(record) for record in iter_records(run)]
    for relation in (relation for record in found for relation in record["relations"]):
        relation["confidence"] = pytest.approx(relation["confidence"], abs=1e-4)
    return found


def generate_outside(out: Path) -> None:
    command = [sys.executable, "-c", "from sgpipe.cli.main import main; main()", "generate", "--limit=8", "--out", out]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)


def test_a_container_labels_what_sgpipe_labels_outside(images, tmp_path):
    config = images.config("sgpipe")
    sgpipe, probe = config["Entrypoint"], config["Healthcheck"]["Test"]
    container, root = images.container("sgpipe")
    labels = root / config["WorkingDir"].strip("/") / "labels"
    assert images.run(container, "id", "--user").strip() == "1000"
    assert "Label images:" in images.run(container, *sgpipe, *config["Cmd"])
    assert probe[0] == "CMD"
    assert "✗" not in images.run(container, *probe[1:])
    images.run(container, *sgpipe, "generate", "--limit=8", "--out=labels")
    assert "8 images in 8 shards" in images.run(container, *sgpipe, "verify", "labels")
    assert "relations" in images.run(container, *sgpipe, "stats", "labels")
    assert labels.stat().st_uid == 1000
    generate_outside(tmp_path / "labels")
    assert [asdict(record) for record in iter_records(labels)] == rows(tmp_path / "labels")
