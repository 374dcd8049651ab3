"""`sgpipe label` without options, as a user runs it: models come from a stub of the hub, then from the cache alone."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.clip_checkpoints import make_clip
from tests.factories import make_blip
from tests.sgpipe.stages.detect.detectors import make_grounding_dino

ROOT = Path(__file__).parents[2]
BLIP, DINO = "Salesforce/blip-image-captioning-base", "IDEA-Research/grounding-dino-tiny"
CLIP = "openai/clip-vit-base-patch32"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubStub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for models in folders `root/USER/NAME`."""

    root: Path
    asked: list[str]
    broken = ""  # a file that breaks off halfway

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.asked.append(path)
        if path.startswith("api/models/"):
            name, _, rest = path.removeprefix("api/models/").partition("/revision/")
            name, is_tree, _ = name.partition("/tree/")
            files = sorted((self.root / name).iterdir()) if (self.root / name).is_dir() else []
            tree = [
                {"type": "file", "path": each.name, "size": each.stat().st_size, "oid": tag(each)} for each in files
            ]
            siblings = [{"rfilename": each["path"], "size": each["size"]} for each in tree]
            answer = tree if is_tree else {"id": name, "sha": COMMIT, "siblings": siblings}
            headers = {"Content-Type": "application/json"} | ({} if files else {"X-Error-Code": "RepoNotFound"})
            self.send(json.dumps(answer).encode(), headers, 200 if files else 404)
        else:
            name, _, rest = path.partition("/resolve/")
            file = self.root / name / rest.partition("/")[2]
            content = file.read_bytes() if file.is_file() else b""
            headers = {"ETag": f'"{tag(file)}"'} if file.is_file() else {"X-Error-Code": "EntryNotFound"}
            self.send(content, headers | {"X-Repo-Commit": COMMIT}, 200 if file.is_file() else 404)

    def send(self, content: bytes, headers: dict[str, str], status: int) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            with suppress(ConnectionError):
                whole = not self.broken or not self.path.endswith(self.broken)
                self.wfile.write(content if whole else content[: len(content) // 2])

    def log_message(self, *_: object) -> None:
        pass


def tag(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadingHTTPServer]:
    root = tmp_path_factory.mktemp("hub")
    make_blip(root / BLIP)
    make_grounding_dino(root / DINO)
    make_clip(root / CLIP)
    for name in (BLIP, DINO):
        for other in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"):  # nobody needs them
            (root / name / other).write_bytes(bytes(1000))
    safetensors = root / CLIP / "model.safetensors"  # an old model has weights of PyTorch alone
    torch.save(load_file(safetensors), safetensors.with_name("pytorch_model.bin"))
    safetensors.unlink()
    HubStub.root, HubStub.asked = root, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubStub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def sgpipe(*words: object, cache: Path, endpoint: str, offline: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(cache), "HF_ENDPOINT": endpoint}
    environment |= {"HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", "from sgpipe.cli.main import main; main()", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_photographs_are_labelled_with_models_of_the_hub(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    cache, endpoint, nowhere = tmp_path / "cache", f"http://127.0.0.1:{hub.server_port}", "http://127.0.0.1:9"
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")

    def label(name: str, *words: str, **where: Any) -> subprocess.CompletedProcess[str]:
        return sgpipe("label", photos, "--out", tmp_path / name, "--json", *words, cache=cache, **where)

    for offline, place in ((True, endpoint), (False, nowhere)):
        refused = label("refused", endpoint=place, offline=offline)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
        assert all(name in refused.stderr for name in (BLIP, DINO, CLIP, "`sgpipe doctor --recipe photos --fetch`"))
    assert not (tmp_path / "refused").exists()

    first = label("first", endpoint=endpoint)
    assert first.returncode == 0, first.stderr
    said = [line for line in first.stderr.splitlines() if line.startswith("downloading ")]
    assert said == [f"downloading {DINO}, {BLIP}, {CLIP}: about 0.0 GB into {cache / 'hub'}"]
    rows = [json.loads(line) for line in first.stdout.splitlines()]
    assert [(row["status"], len(row["captions"])) for row in rows] == [("ok", 10)] * 2
    assert {path.name for path in (tmp_path / "first").iterdir()} == {f"{n}.png.relations.png" for n in range(2)}
    others = [path for path in HubStub.asked if path.endswith((".bin", ".h5", ".msgpack"))]
    assert {path.partition("/resolve/")[0] for path in others} == {CLIP}

    HubStub.asked.clear()
    for name, place in (("again", endpoint), ("offline", nowhere)):
        again = label(name, endpoint=place)
        assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
        assert "downloading" not in again.stderr
    assert HubStub.asked == []


def test_doctor_lists_and_fetches_the_models_of_a_recipe(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    where: dict[str, Any] = {"cache": tmp_path / "cache", "endpoint": f"http://127.0.0.1:{hub.server_port}"}
    listed = sgpipe("doctor", "--recipe", "photos", **where)
    assert (listed.returncode, listed.stdout.count("missing from")) == (1, 3), listed.stderr
    HubStub.broken = f"{BLIP.split('/')[1]}/resolve/{COMMIT}/model.safetensors"
    halfway = sgpipe("doctor", "--recipe", "photos", "--fetch", **where)
    assert halfway.returncode == 1
    assert halfway.stderr.splitlines()[-1].endswith("; the same command resumes the download")
    HubStub.broken = ""
    fetched = sgpipe("doctor", "--recipe", "photos", "--fetch", **where)
    assert (fetched.returncode, fetched.stdout.count(f"in {tmp_path}")) == (0, 3), fetched.stderr
    [weights] = (tmp_path / "cache/hub" / f"models--{BLIP.replace('/', '--')}").glob("snapshots/*/model.safetensors")
    weights.unlink()  # a download that broke off
    found = json.loads(sgpipe("doctor", "--recipe", "photos", "--json", **where, offline=True).stdout)
    assert {each["name"]: each["state"] for each in found} == {DINO: "ok", BLIP: "bad", CLIP: "ok"}
    wrong = sgpipe("doctor", "--recipe", "photos", "--set", "tag.tagger=no/such", "--fetch", **where)
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1), wrong.stderr
    assert "the model no/such is not on the hub" in wrong.stderr
