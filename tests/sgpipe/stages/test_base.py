"""Running stages: what they took."""

import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from sgpipe.recipe import Resources
from sgpipe.records import Record
from sgpipe.stages import base
from sgpipe.stages.base import ImageStage, IsolatedRunner, Stage, StageRunner, Usage
from tests.values import values_of


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
    monkeypatch.setattr(base.time, "perf_counter", lambda: clock[0])
    runner = StageRunner([Clocked("parse", clock=clock), Clocked("tag", gpu=True, clock=clock)])
    use = {"tag": {"gpu": "H100", "memory": 5}}
    assert runner(records(3))[1] == Usage({"parse": 3.0, "tag": 3.0, "compilation": 60.0}, use)
    assert runner(records(2))[1] == Usage({"parse": 2.0, "tag": 2.0}, use)
    usage = Usage({"caption": 1.0, "compilation": 2.0}, {"caption": {"memory": 1}})
    usage.add(Usage({"tag": 1.0, "compilation": 3.0}, {"tag": {"memory": 2}}))
    seconds = {"caption": 1.0, "compilation": 5.0, "tag": 1.0}
    assert usage == Usage(seconds, {"caption": {"memory": 1}, "tag": {"memory": 2}})


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
class Raising(Clocked):
    def __call__(self, records: list[Record]) -> list[Record]:
        if len(records) == 1:
            raise EOFError("the stage's own")
        return super().__call__(records)


@pytest.mark.slow
def test_a_process_of_its_own_reports_the_same_and_what_a_stage_raises_is_no_crash() -> None:
    runner = IsolatedRunner([Raising("tag", gpu=True)])
    for _ in range(2):
        with pytest.raises(EOFError, match="the stage's own"):
            runner(records(1))
    processed, usage = runner(records(2))
    assert all(values_of(processed, "ok"))
    assert usage.gpus == {"tag": {"gpu": "H100", "memory": 5}}
    assert set(usage.seconds) == {"tag", "compilation"}
