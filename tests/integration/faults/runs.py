"""Runs of the stub pipeline in processes of their own, and what is in those processes."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sgpipe.records import Record
from sgpipe.storage.manifest import MANIFEST, Manifest
from sgpipe.storage.run_records import iter_records
from sgpipe.storage.verify import verify
from tests.integration.faults import stub
from tests.processes import descendants
from tests.values import values_of

# Importing sgpipe takes longer than a run: it is done once, in a process that only forks. What
# `sgpipe` sets before it imports Ray is set here.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([stub.__name__, "sgpipe.view.app"])
FIFTY = int(os.environ.get("SGPIPE_SOAK_KILLS", "50"))


def make_dataset(
    folder: Path, images: int, fatal: Collection[int] = (), broken: Collection[int] = ()
) -> list[str]:
    """A dataset in COCO form with one empty image, since the stub opens none; returns the options
    that name it.

    Args:
        fatal: numbers of the images on which the stub crashes.
        broken: of those on which it raises.
    """
    names = {}
    for number in range(images):
        fault = "fatal-" * (number in fatal) + "broken-" * (number in broken)
        names[number] = f"{fault}{number:04d}.png"
    box = {"bbox": [1, 1, 5, 5], "iscrowd": 0, "category_id": 1}
    annotations = {
        "images": [
            {"id": number, "file_name": name, "width": 64, "height": 48}
            for number, name in names.items()
        ],
        "annotations": [
            {**box, "image_id": n, "bbox": [k, 1, 5, 5]} for n in names for k in range(n % 4)
        ],
        "categories": [{"id": 1, "name": "dog"}],
    }
    captions = {"annotations": [{"image_id": number, "caption": "a dog"} for number in names]}
    folder.mkdir(parents=True)
    (folder / names[0]).touch()
    options = []
    for option, content in (("annotations", annotations), ("captions", captions)):
        path = folder / f"{option}_val.json"
        path.write_text(json.dumps(content))
        options += [f"--{option}", str(path)]
    return [*options, "--images", str(folder), "--split", "val", "--tagger", "none"]


@dataclass
class Run:
    """`sgpipe generate` on a dataset, as a process that can be killed and started again."""

    dataset: list[str]
    out: Path
    more: tuple[str, ...] = ("--set", "engine.unit_size=1", "--set", "engine.cpus=2")
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.out.with_suffix(".log")

    def start(self) -> None:
        arguments = ["generate", "coco", *self.dataset, "--out", str(self.out), *self.more]
        # By default Ray's workers stand back behind all other processes of the machine, other
        # tests' among them.
        environment = {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1", **self.environment}
        self.process = SERVER.Process(target=_command, args=(arguments, environment, str(self.log)))
        self.process.start()

    def wait(self, seconds: float = 600) -> int:
        """The exit code; negative: the signal that killed it."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still at work:\n{self.said}"
        return self.process.exitcode

    @property
    def said(self) -> str:
        """What all processes so far have printed."""
        return self.log.read_text() if self.log.exists() else ""

    @property
    def committed(self) -> int:
        """Lines of the manifest after its first."""
        path = self.out / MANIFEST
        return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0

    def wait_for(self, condition: Callable[[], object], seconds: float = 300) -> bool:
        """Whether the condition came true before the process or the time ended."""
        end = time.monotonic() + seconds
        while self.process.is_alive() and time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.01)
        return False

    def processes(self, title: str) -> list[int]:
        """Processes that the run has started, and these in turn, whose title has `title` in it."""
        return [pid for pid in descendants(self.process.pid) if title in title_of(pid)]


def finished(run: Run) -> Run:
    """Start a run, or start it again, and let it end."""
    run.start()
    assert run.wait() == 0, run.said
    return run


def _command(arguments: list[str], environment: dict[str, str], log: str) -> None:
    """The body of the process: as if the shell had started it."""
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(log, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        stub.main(*arguments)
    finally:
        atexit._run_exitfuncs()  # which a forked process leaves out


def title_of(pid: int) -> str:
    """The command of a process, or what it calls itself; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def rows(out: Path) -> list[Record]:
    return list(iter_records(out))


def assert_whole(out: Path, expected: list[Record]) -> None:
    """The run is what an uninterrupted one is: no row lost, none twice, none another, no file too
    many.
    """
    assert rows(out) == expected
    verified = verify(out)
    assert verified.ok, verified.problems
    listed = {Path(shard.file).name for shard in Manifest.load(out).shards}
    assert set(values_of((out / "data").iterdir(), "name")) == listed
