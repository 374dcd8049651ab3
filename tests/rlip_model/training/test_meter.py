"""What a training says about itself."""

from dataclasses import replace

import torch
from torch.optim import SGD

from rlip_model.training.batches import TrainingBatch
from rlip_model.training.meter import StepMeter
from tests.rlip_model.training.worlds import ToyFeed


def parts(skipped: int) -> list[TrainingBatch]:
    (first,) = next(ToyFeed(1, batch=3)._endless(0, 0))
    return [replace(first, skipped=skipped), first]


def test_means_since_the_last_reading() -> None:
    weight = torch.zeros(1)
    optimizer = SGD([{"params": [weight], "lr": 0.25, "name": "rest"}, {"params": [], "lr": 1.0, "name": "text"}])
    meter = StepMeter(total=10)
    for loss in (1.0, 4.0):
        meter.add(parts(skipped=1), {"loss": torch.tensor(loss)}, torch.tensor(2 * loss))
    first = meter.read(1, 2, optimizer)
    assert {name: first[name] for name in ("event", "epoch", "step", "steps", "loss", "gradient_norm", "skipped")} == {
        "event": "step",
        "epoch": 2,
        "step": 2,
        "steps": 10,
        "loss": 2.5,
        "gradient_norm": 5.0,
        "skipped": 2,
    }
    assert first["lr_rest"] == 0.25
    assert "lr_text" not in first  # it trains nothing
    meter.add(parts(skipped=2), {"loss": torch.tensor(7.0)}, torch.tensor(1.0))
    second = meter.read(1, 3, optimizer)
    assert (second["loss"], second["skipped"]) == (7.0, 4)  # images are counted since the start
