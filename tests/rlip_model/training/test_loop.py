"""The training loop: going on exactly, averages, parts of steps, validation, and losses that are no numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlip_model.model import AutoModel, RLIPModel
from rlip_model.training import loop
from rlip_model.training.batches import TrainingBatch
from rlip_model.training.divergence import DivergenceError
from rlip_model.training.loop import Trainer
from rlip_model.training.meter import Metrics
from rlip_model.training.objective import Objective, checkpoint_activations
from tests.rlip_model.training.worlds import ToyFeed, folder, objective, options


class KilledError(Exception):
    """Stands for the end of the process."""


def final(path: Path) -> dict[str, Tensor]:
    return load_file(path / "last" / "model.safetensors")


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


@pytest.mark.parametrize(("kind", "ema", "killed_at"), [("parseda", 0.0, 4), ("tagger", 0.9, 5)])
def test_killed_and_gone_on_ends_in_the_same_weights(tmp_path: Path, kind: str, ema: float, killed_at: int) -> None:
    feed = ToyFeed(3, validate=True)

    def trainer(name: str, kill: int | None = None) -> tuple[Trainer, list[Metrics]]:
        rows: list[Metrics] = []

        def report(row: Metrics) -> None:
            rows.append(row)
            if row["event"] == "step" and row["step"] == kill:
                raise KilledError

        made = Trainer(
            objective(kind), options(ema=ema), folder(tmp_path / name), report=report, log_every=1, checkpoint_every=2
        )
        return made, rows

    whole, expected = trainer("whole")
    whole.fit(feed)
    cut, _ = trainer("cut", killed_at)
    with pytest.raises(KilledError):
        cut.fit(feed)
    again, rows = trainer("cut")
    latest = again.checkpoints.latest()
    assert latest is not None
    stored = AutoModel.from_pretrained(latest)
    again.objective.network.load_state_dict(stored.state_dict())
    again.restore(latest)
    again.fit(feed)
    assert_equal(final(tmp_path / "cut"), final(tmp_path / "whole"))
    curve = {row["step"]: row["loss"] for row in expected if row["event"] == "step"}
    assert [row["loss"] for row in rows if row["event"] == "step"] == [
        curve[row["step"]] for row in rows if row["event"] == "step"
    ]


def test_training_learns(tmp_path: Path) -> None:
    rows: list[Metrics] = []
    trainer = Trainer(objective(), options(epochs=3), folder(tmp_path), report=rows.append, log_every=4)
    trainer.fit(ToyFeed(4, batch=3))
    losses = [float(row["loss"]) for row in rows]
    assert losses[-1] < 0.8 * losses[0]


def test_parts_of_a_step_add_up(tmp_path: Path) -> None:
    """Of images with equally many triplets the parts' mean is the whole, up to rounding."""

    def moved(parts: int) -> RLIPModel:
        target = objective()
        for module in target.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        target.network.queries.box_noise = target.network.queries.label_noise = 0.0
        for layer in target.network.modules():
            if hasattr(layer, "dropout") and isinstance(layer.dropout, float):
                layer.dropout = 0.0
        trainer = Trainer(target, options(epochs=1), folder(tmp_path / str(parts)))
        parts_of = next(ToyFeed(1, batch=4, parts=parts)._endless(0, 0))
        trainer.module.train()
        trainer.optimizer.zero_grad()
        for part in parts_of:
            (trainer.module(part)["loss"] / len(parts_of)).backward()
        return target.network

    whole, halves = (dict(moved(parts).named_parameters()) for parts in (1, 2))
    for name, parameter in whole.items():
        if parameter.grad is not None and parameter.grad.abs().max() > 1e-4:
            torch.testing.assert_close(halves[name].grad, parameter.grad, rtol=2e-2, atol=2e-4)


def test_checkpointed_activations_change_nothing() -> None:
    batch = next(ToyFeed(1)._endless(0, 0))[0]

    def gradients(checkpointed: bool) -> tuple[Tensor, dict[str, Tensor]]:
        target = objective("parseda").train()
        if checkpointed:
            checkpoint_activations(target.network)
        torch.manual_seed(0)
        loss = target(batch)["loss"]
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in target.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert torch.equal(plain[0], again[0])
    assert plain[1].keys() == again[1].keys()
    for name, gradient in plain[1].items():
        torch.testing.assert_close(again[1][name], gradient)


def test_the_average_is_what_is_saved_and_validated(tmp_path: Path) -> None:
    trainer = Trainer(objective(), options(ema=0.5, epochs=1), folder(tmp_path))
    trainer.fit(ToyFeed(3))
    saved, trained = final(tmp_path), dict(trainer.objective.network.named_parameters())
    assert trainer.ema is not None
    name = "queries.coord_proj.weight"
    assert torch.equal(saved[name], trainer.ema.values[name])
    assert not torch.equal(saved[name], trained[name])


def test_the_best_by_a_measure(tmp_path: Path) -> None:
    rows: list[Metrics] = []
    trainer = Trainer(objective(), options(epochs=3), folder(tmp_path), report=rows.append, best_by="loss")
    trainer.fit(ToyFeed(2, batch=4, validate=True))
    losses = {int(row["step"]): float(row["loss"]) for row in rows if row["event"] == "validation"}
    best = (tmp_path / "best").resolve().name
    assert best == f"step-{min(losses, key=losses.__getitem__):08d}"


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.0, 0.0, 0.0], 3),
        ([0.5, 0.5, 0.25], 2),
        ([0.0, 0.25, 0.0], 2),
        ([float("nan"), 0.1, float("nan")], 2),
        ([0.1, float("inf"), 0.1], 3),
    ],
)
def test_of_equal_epochs_the_latest_is_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[float], best: int
) -> None:
    measured = iter(scores)
    monkeypatch.setattr(loop, "validate", lambda *_: {"loss": 1.0, "ap": next(measured)})
    Trainer(objective(), options(epochs=2), folder(tmp_path)).fit(ToyFeed(1, validate=True))
    resumed = Trainer(objective(), options(epochs=3), folder(tmp_path))
    latest = resumed.checkpoints.latest()
    assert latest is not None
    resumed.restore(latest)
    resumed.fit(ToyFeed(1, validate=True))
    assert (tmp_path / "best").resolve().name == f"step-{best:08d}"


def broken(batch: TrainingBatch, image: int) -> TrainingBatch:
    pixels = batch.pixel_values.clone()
    pixels[image] = float("nan")
    return replace(batch, pixel_values=pixels)


class BrokenFeed(ToyFeed):
    """The second image of the second step is not finite."""

    def _batches(self, epoch: int, first: int):  # type: ignore[no-untyped-def]
        for step, parts in enumerate(super()._batches(epoch, first), first):
            yield [broken(parts[0], 1)] if step == 1 else parts


@pytest.mark.parametrize("kind", ["tagger", "parseda"])
def test_a_loss_that_is_no_number_names_the_image(tmp_path: Path, kind: str) -> None:
    trainer = Trainer(objective(kind), options(), folder(tmp_path))
    feed = BrokenFeed(3)
    culprit = list(ToyFeed(3)._batches(0, 0))[1][0].image_ids[1]
    with pytest.raises(DivergenceError, match=f"step 2: .*caused by image {culprit};"):
        trainer.fit(feed)
    (kept,) = tmp_path.glob("diverged-step-*/process-0")
    assert json.loads((kept / "batch.json").read_text())["images"][1] == culprit
    assert load_file(kept / "batch.safetensors")["pixel_values"][1].isnan().all()


def test_broken_parameters_are_named(tmp_path: Path) -> None:
    target = objective()
    with torch.no_grad():
        target.network.scorer.projection.weight[0] = float("nan")
    trainer = Trainer(target, options(), folder(tmp_path))
    with pytest.raises(DivergenceError, match="parameters are not finite since an earlier step"):
        trainer.fit(ToyFeed(1))


def test_a_batch_of_no_images_moves_nothing() -> None:
    target: Objective = objective("parseda").train()
    empty = replace(
        next(ToyFeed(1)._endless(0, 0))[0],
        image_ids=(),
        pixel_values=torch.zeros(0, 3, 0, 0),
        padding=torch.zeros(0, 0, 0, dtype=torch.bool),
        triplets=(),
        sizes=(),
    )
    losses = target(empty)
    losses["loss"].backward()
    assert float(losses["loss"].detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in target.parameters())
