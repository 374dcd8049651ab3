"""Running stages: what they took, and what becomes of their failures."""

import errno
import pickle
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from sgpipe.errors import CodeError, ComputationError, EngineError, StoreError, UserError
from sgpipe.plugins import failures_told
from sgpipe.recipe import Resources
from sgpipe.records import Caption, Record
from sgpipe.stages import runner as runner_module
from sgpipe.stages.base import ImageStage, Stage
from sgpipe.stages.failures import FailuresInARowError, ImageLimits
from sgpipe.stages.runner import IsolatedRunner, SharedSeconds, StageRunner, Usage
from sgpipe.utils.gpu import MemoryFullError


@dataclass
class Clocked(Stage):
    """Takes a second of `clock` for a record; those on a GPU first compile for a minute."""

    name: str
    gpu: bool = False
    clock: list[float] = field(default_factory=lambda: [0.0])
    compiled: float = 0.0
    resources: Resources = field(default_factory=Resources)

    def __call__(self, records: list[Record]) -> list[Record]:
        if self.gpu and not self.compiled:
            self.compiled = 60.0
            self.clock[0] += 60.0
        self.clock[0] += len(records)
        return records

    def gpu_use(self) -> dict[str, Any]:
        return {"gpu": "H100", "memory": 5, "compilation": self.compiled} if self.gpu else {}


def records(number: int) -> list[Record]:
    return [Record(str(index), "d", "s", f"{index}.jpg", 1, 1) for index in range(number)]


def test_compiling_is_counted_apart_and_usage_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(runner_module.time, "perf_counter", lambda: clock[0])
    runner = StageRunner([Clocked("parse", clock=clock), Clocked("tag", gpu=True, clock=clock)])
    use = {"tag": {"gpu": "H100", "memory": 5}}
    assert runner(records(3))[1] == Usage({"parse": 3.0, "tag": 3.0, "compilation": 60.0}, use)
    assert runner(records(2))[1] == Usage({"parse": 2.0, "tag": 2.0}, use)
    usage = Usage({"caption": 1.0, "compilation": 2.0}, {"caption": {"memory": 1}})
    usage.add(Usage({"tag": 1.0, "compilation": 3.0}, {"tag": {"memory": 2}}))
    seconds = {"caption": 1.0, "compilation": 5.0, "tag": 1.0}
    assert usage == Usage(seconds, {"caption": {"memory": 1}, "tag": {"memory": 2}})


def test_seconds_of_threads_that_wait_together_add_up_to_the_time_that_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(runner_module.time, "perf_counter", lambda: clock[0])
    shared = SharedSeconds()
    first = shared.begin()
    clock[0] = 2.0
    second = shared.begin()
    clock[0] = 6.0
    assert shared.end() - first == 2 + 4 / 2
    clock[0] = 7.0
    assert shared.end() - second == 4 / 2 + 1


def test_the_utilization_of_a_gpu_is_that_while_its_stage_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampled = threading.Event()
    percent = [0]
    monkeypatch.setattr("rlip_model.training.gpu_utilization._SECONDS_BETWEEN_SAMPLES", 0.001)
    monkeypatch.setattr("torch.cuda.utilization", lambda device: (sampled.set(), percent[0])[1])

    class OnGpu(ImageStage):
        def __init__(self, name: str, device: str) -> None:
            self.name = name
            self.device = torch.device(device)

        def __call__(self, records: list[Record]) -> list[Record]:
            assert self.device.type == "cpu" or sampled.wait(10)
            return records

        def gpu_use(self) -> dict[str, Any]:
            return {}

    runner = StageRunner([OnGpu("caption", "cuda"), OnGpu("tag", "cpu"), Clocked("parse")])
    for percent[0] in (40, 90):
        sampled.clear()
        assert runner(records(1))[1].gpus == {"caption": {"utilization": percent[0] / 100}}


@dataclass
class Failing(Clocked):
    """Fills captions, and raises if it gets the image of this name."""

    error: Exception = field(default_factory=Exception)
    bad: str = "5.jpg"

    def __call__(self, records: list[Record]) -> list[Record]:
        for record in records:
            record.captions.append(Caption(record.file_name))
        if self.bad in [record.file_name for record in records]:
            raise self.error
        return records


def of_own_code(error: Exception) -> CodeError:
    """Return what is raised for an exception of a stage of the user's own."""
    with pytest.raises(CodeError) as caught, failures_told("stage", "own.words:Clean"):
        raise error
    return caught.value


FAILURES = [
    (of_own_code(KeyError("x")), "stage own.words:Clean failed: KeyError: 'x'"),
    (ValueError("a bug\nin detail"), "ValueError: a bug"),
    (KeyError(), "KeyError: KeyError"),
    (MemoryError("full"), "MemoryError: full"),
    (TimeoutError("slow"), "TimeoutError: slow"),
    (FileNotFoundError(2, "no file", "a"), "FileNotFoundError: [Errno 2] no file: 'a'"),
    (RuntimeError("CUDA error: out of memory"), "RuntimeError: CUDA error: out of memory"),
    (MemoryFullError("the memory is full"), "the memory is full"),
    (ComputationError("NaN"), "NaN"),
]


@pytest.mark.parametrize(("error", "reason"), FAILURES)
def test_a_failure_is_an_error_row_and_others_are_filled_once(
    error: Exception, reason: str
) -> None:
    filled, usage = StageRunner([Failing("tag", error=error), Clocked("later")])(records(11))
    assert [record.file_name for record in filled] == [f"{number}.jpg" for number in range(11)]
    assert [record.error for record in filled if not record.ok] == [f"tag: {reason}"]
    assert all(len(record.captions) == record.ok for record in filled)
    [failure] = usage.failures
    assert (failure.file_name, failure.stage, failure.reason) == ("5.jpg", "tag", reason)
    assert "raise self.error" in failure.traceback


@pytest.mark.parametrize(
    "error",
    [
        UserError("a key"),
        EngineError("no answer"),
        StoreError("gone"),
        OSError(errno.ENOSPC, "full"),
        of_own_code(OSError(errno.ENOSPC, "full")),
    ],
)
def test_what_other_images_would_meet_too_is_raised(error: Exception) -> None:
    with pytest.raises(type(error)):
        StageRunner([Failing("tag", error=error)])(records(11))


@dataclass
class Broken(Clocked):
    """Fails on all images but the first `good`."""

    good: int = 0

    def __call__(self, records: list[Record]) -> list[Record]:
        if any(int(record.image_id) >= self.good for record in records):
            raise ValueError(f"image {records[0].image_id}")
        return records


@pytest.mark.parametrize("good", [0, 7])
def test_twenty_failures_in_a_row_end_a_run(good: int) -> None:
    broken = [Broken("tag", good=good)]
    with pytest.raises(FailuresInARowError) as caught:
        StageRunner(broken, ImageLimits(max_errors=0.5))(records(64))
    error = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - as workers send it
    assert str(error) == f"20 images in a row failed, all in tag: ValueError: image {good}"
    assert error.failures == caught.value.failures
    filled, usage = StageRunner(broken, ImageLimits(max_errors=1))(records(64))
    assert sum(record.ok for record in filled) == good
    assert len(usage.failures) == 64 - good


@dataclass
class Crashing(Clocked):
    """Fails in ways that end a process, by the names of images."""

    def __call__(self, records: list[Record]) -> list[Record]:
        for record in records:
            if record.image_id == "1":
                raise RuntimeError("CUDA error: device-side assert triggered")
            if record.image_id == "3":
                time.sleep(30)
            if record.image_id == "4":
                raise EOFError("the stage's own")
        return records


@pytest.mark.slow
def test_a_process_of_its_own_ends_for_a_gpu_that_failed_and_for_time() -> None:
    runner = IsolatedRunner([Crashing("tag")], ImageLimits(seconds=0.5))
    processed, usage = runner(records(5))
    assert [record.error for record in processed] == [
        None,
        "worker: the worker crashed twice on this image",
        None,
        "worker: a stage took more than 0.5 seconds (engine.image_timeout)",
        "tag: EOFError: the stage's own",
    ]
    gpu, timeout, raised = usage.failures
    assert "CUDA error: device-side assert triggered" in gpu.traceback
    assert "test_runner.py" in timeout.traceback
    assert "the stage's own" in raised.traceback


@pytest.mark.slow
def test_a_process_of_its_own_reports_the_same() -> None:
    processed, usage = IsolatedRunner([Clocked("tag", gpu=True)])(records(2))
    assert all(record.ok for record in processed)
    assert usage.gpus == {"tag": {"gpu": "H100", "memory": 5}}
    assert set(usage.seconds) == {"tag", "compilation"}
