"""Parts of a training: rates, averages, metrics, batches, checkpoints."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from rlip_model.dense_head import LabelledBoxes
from rlip_model.model import RTagger
from rlip_model.settings import Optimisation
from rlip_model.targets import Triplets
from rlip_model.training import state
from rlip_model.training.batches import TrainingExample, collate
from rlip_model.training.ema import EMA
from rlip_model.training.meter import StepMeter
from rlip_model.training.optimisation import freeze, make_optimizer, set_rates
from rlip_model.training.sampling import Texts
from rlip_model.training.state import Checkpoints, Position, TrainingState
from tests.rlip_model.training.worlds import ToyFeed, network
from tests.values import values_of

TEXTS = Texts(("dog", "no objects"), ("on",))


def test_the_rate_drops_one_step_late_as_published() -> None:
    options = Optimisation(epochs=4, lr_drop=2)
    factors = [options.factor(step, step // 3, step % 3 / 3) for step in range(12)]
    assert factors == pytest.approx([1.0] * 7 + [0.1] * 5)


def test_every_trainable_parameter_has_one_group() -> None:
    model = network()
    freeze(model, ("text_encoder",))
    optimizer = make_optimizer(model, Optimisation(lr=1.0, lr_backbone=0.5, lr_text=0.25))
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    set_rates(optimizer, 0.1)
    assert [len(group["params"]) > 0 for group in optimizer.param_groups] == [True, True, False]
    assert values_of(optimizer.param_groups, "lr") == pytest.approx([0.1, 0.05, 0.025])


def test_freezing_means_whole_names() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"no part 'text'; its parts are .*text_encoder"):
        freeze(model, ("text",))
    freeze(model, ("encoder",))
    still = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert {"text_encoder", "encoder"} & still == {"text_encoder"}


def test_the_average_of_parameters_follows_them() -> None:
    network = nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    ema = EMA(network, decay=0.3)
    expected = 0.0
    for update, value in enumerate((1.0, 2.0, -4.0, 8.0, 1.0), 1):
        torch.nn.init.constant_(network.weight, value)
        ema.update()
        decay = min(0.3, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * value
        torch.testing.assert_close(ema.values["weight"].item(), expected)
    assert ema.updates == 5


def example(name: str, height: int, width: int) -> TrainingExample:
    labels = torch.zeros(1, dtype=torch.long)
    triplets = Triplets(torch.rand(1, 4), torch.rand(1, 4), labels, labels, torch.ones(1, 1))
    objects = LabelledBoxes(triplets.subject_boxes, labels)
    return TrainingExample(
        name, torch.rand(3, height, width) + 1, triplets, (width, height), objects
    )


def test_images_are_padded_right_and_below() -> None:
    wide = example("wide", 4, 9)
    high = example("high", 7, 5)
    batch = collate([wide, high], TEXTS, skipped=1)
    assert (batch.pixel_values.shape, len(batch), batch.skipped) == ((2, 3, 7, 9), 2, 1)
    for image, single in enumerate((wide, high)):
        _, rows, columns = single.pixel_values.shape
        assert torch.equal(batch.pixel_values[image, :, :rows, :columns], single.pixel_values)
        assert (~batch.padding[image]).sum() == rows * columns
        assert torch.equal(batch.padding[image], (batch.pixel_values[image] == 0).all(0))


def test_metrics_are_means_since_the_last_reading() -> None:
    (batch,) = next(ToyFeed(1, batch=3)._endless(0, 0))
    weight = torch.zeros(1)
    optimizer = torch.optim.SGD(
        [
            {"params": [weight], "lr": 0.25, "name": "rest"},
            {"params": [], "lr": 1.0, "name": "text"},
        ]
    )
    meter = StepMeter(total=10)
    for loss in (1.0, 4.0):
        meter.add(
            [replace(batch, skipped=1), batch], {"loss": torch.tensor(loss)}, torch.tensor(2 * loss)
        )
    first = meter.read(1, 2, optimizer)
    expected = {
        "event": "step",
        "epoch": 2,
        "step": 2,
        "steps": 10,
        "loss": 2.5,
        "gradient_norm": 5.0,
        "skipped": 2,
    }
    assert {name: first[name] for name in expected} == expected
    assert first["lr_rest"] == 0.25
    assert "lr_text" not in first  # it trains nothing
    meter.add([replace(batch, skipped=2), batch], {"loss": torch.tensor(7.0)}, torch.tensor(1.0))
    second = meter.read(1, 3, optimizer)
    assert (second["loss"], second["skipped"]) == (7.0, 4)  # images are counted since the start


def saved(checkpoints: Checkpoints, step: int, best: bool = False) -> Path:
    model = network(seed=step)
    tensors = {"exp_avg.x": torch.full((4,), float(step))[::2]}
    return checkpoints.save(
        model, TrainingState(Position(step=step), model.state_dict(), tensors), best
    )


def steps(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (root / "checkpoints").iterdir())


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".writing-abc"  # of a killed process
    left.mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 6):
        saved(checkpoints, step, best=step == 2)
    assert steps(tmp_path) == [2, 4, 5]
    assert (tmp_path / "best").resolve().name == "step-00000002"
    assert checkpoints.latest() == (tmp_path / "checkpoints" / "step-00000005").resolve()
    assert RTagger.from_pretrained(tmp_path / "best").config.num_queries == 8


def test_a_checkpoint_that_meets_a_full_disk_raises_the_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(state, "save_file", fail)
    with pytest.raises(OSError, match="No space left") as error:
        saved(Checkpoints(tmp_path), 1)
    assert error.value.errno == errno.ENOSPC
