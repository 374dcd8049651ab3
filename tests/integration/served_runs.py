"""Runs whose captions a server on this machine writes, and which are killed with all of their processes."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from sgpipe.storage.run_folder import REQUESTS
from tests.endpoint_server import EndpointServer, wait_until
from tests.integration.faults.runs import descendants

KEY = "sk-only-in-the-environment-4f1c"
_COMMAND = [sys.executable, "-c", "from sgpipe.cli.main import main; main()", "generate", "coco"]


def make_images(folder: Path, number: int) -> list[str]:
    """Annotated images, no two alike; returns the options that name them."""
    folder.mkdir()
    noise = random.Random(0)
    boxes = []
    for index in range(number):
        colours = [tuple(noise.randrange(256) for _ in range(3)) for _ in range(4)]
        image = Image.new("RGB", (2, 2))
        image.putdata(colours)
        image.resize((64, 48)).save(folder / f"{index:04d}.jpg")
        boxes += [
            {"id": 2 * index + side, "image_id": index, "category_id": 1 + side, "bbox": [20 * side, 8, 20, 20]}
            for side in (0, 1)
        ]
    annotations = {
        "images": [{"id": n, "file_name": f"{n:04d}.jpg", "width": 64, "height": 48} for n in range(number)],
        "annotations": [box | {"iscrowd": 0} for box in boxes],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    }
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(annotations), encoding="utf-8")
    return ["--images", str(folder), "--annotations", str(file), "--split", "val"]


@dataclass
class ServedRun:
    """`sgpipe generate` in processes of its own, with all of Ray's files in `ray`, whose path must be short."""

    images: list[str]
    out: Path
    ray: Path
    url: str
    settings: tuple[str, ...] = ()
    key: str = KEY
    marks: bool = False  # the server relates numbered boxes, and there are no captions
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.out.with_suffix(".log")

    def start(self) -> None:
        served = (f"caption.endpoint={self.url}", "caption.captioner=tiny-vlm")
        if self.marks:
            served = ("pair.candidates=marks", "pair.model=tiny-vlm", f"pair.endpoint={self.url}")
            served += ("caption.captioner=null",)
        settings = ("tag.method=all", "engine.unit_size=16", *served, *self.settings)
        options = [option for setting in settings for option in ("--set", setting)]
        command = [*_COMMAND, *self.images, "--out", str(self.out), *options]
        environment = os.environ | {"OPENAI_API_KEY": self.key, "RAY_TMPDIR": str(self.ray), "RAY_worker_niceness": "0"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def wait(self, seconds: float = 900) -> int:
        """The exit code."""
        return self.process.wait(seconds)

    def run(self) -> tuple[int, str]:
        """The exit code, and the last two lines that it prints: an error, and that the same command goes on."""
        self.start()
        code = self.wait()
        return code, "\n".join(self.log.read_text().strip().splitlines()[-2:])

    def kill(self) -> None:
        """The driver and all of its workers, at once; waits until they are gone, and their connections with them."""
        family = (self.process.pid, *descendants(self.process.pid))
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: all(map(_is_gone, family)))

    def kept(self) -> set[str]:
        """The hashes of the requests whose answers the run has on disk."""
        with closing(sqlite3.connect(f"file:{self.out / '.sgpipe' / REQUESTS}?mode=ro", uri=True)) as connection:
            return {request.hex() for (request,) in connection.execute("SELECT request FROM answers")}

    def kill_when_paid(self, server: EndpointServer, answers: int, *, settled: bool) -> bool:
        """Kill it after this number of answers; False if it has ended before.

        Args:
            settled: no answer is on its way at that moment. What is on its way then is paid for, but lost.
        """
        wait_until(lambda: sum(server.paid.values()) >= answers or self.process.poll() is not None, 900)
        if self.process.poll() is not None:
            return False
        if settled:
            server.pause()
            wait_until(lambda: len(server.paid.keys() - self.kept()) <= 1)  # the example's answer is not kept
        self.kill()
        server.released.set()
        return True


def _is_gone(pid: int) -> bool:
    """Whether a process has ended: its files and connections are closed then, even if nobody has asked how it ended."""
    try:
        ended = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        return ended and len(os.listdir(f"/proc/{pid}/task")) <= 1  # its other threads have ended, too
    except (FileNotFoundError, ProcessLookupError):
        return True


def files_with(text: str, *folders: Path) -> Iterator[Path]:
    """The files that contain a text."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                with suppress(OSError):
                    if text.encode() in path.read_bytes():
                        yield path
