"""The training loop: going on exactly, averages, parts of steps, validation, and losses that are no
numbers.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlip_model.losses import DetectionCriterion, TaggerCriterion
from rlip_model.model import RTagger
from rlip_model.targets import Triplets
from rlip_model.training.batches import TrainingExample, collate
from rlip_model.training.divergence import DivergenceError
from rlip_model.training.loop import Trainer
from rlip_model.training.meter import Metrics
from rlip_model.training.objective import Objective, checkpoint_activations
from rlip_model.training.state import Checkpoints, read_state
from tests.rlip_model.training.worlds import (
    DENSE,
    TEXTS,
    ToyFeed,
    example,
    folder,
    network,
    objective,
    options,
)

CRITERIA = {
    "tagger": TaggerCriterion(),
    "pre-training": DetectionCriterion(),
    "HICO": DetectionCriterion(pseudo_labels=False),
    "V-COCO": DetectionCriterion(quality_labels=False, pseudo_labels=False),
}
DENSE_KINDS = ("dense", "boxes")  # with a dense head, also alone
TRIPLETS = (3, 0, 1, 2, 0, 4, 1, 1)  # of the images: a mean of means would be another number


def final(path: Path) -> dict[str, Tensor]:
    return load_file(path / "last" / "model.safetensors")


def uneven(images: int, kind: str) -> list[TrainingExample]:
    """Examples with different numbers of triplets; with V-COCO, some have no object."""
    examples = []
    for number in range(images):
        full = example(number)
        rows = torch.zeros(TRIPLETS[number], dtype=torch.long)
        triplets = Triplets(*(value[rows] for value in vars(full.triplets).values()))
        if len(rows) > 1:
            triplets.relation_labels[1] = 1
            if kind == "V-COCO":
                triplets.object_boxes[0] = 0
        examples.append(replace(full, triplets=triplets))
    return examples


def _of_two(kind: str) -> object:
    """All kinds in the integration tests, two of them in the unit tests."""
    return pytest.param(kind, marks=() if kind in ("HICO", "tagger") else pytest.mark.slow)


def undisturbed(target: Objective) -> Objective:
    """Without dropout and noise, whose random numbers differ between parts."""
    for module in target.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    if isinstance(target.network, RTagger):
        target.network.queries.box_noise = target.network.queries.label_noise = 0.0
    return target


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(map(_of_two, (*CRITERIA, *DENSE_KINDS))))
def test_a_step_in_parts_is_the_step_in_one(tmp_path: Path, kind: str) -> None:
    def step(cuts: Sequence[int]) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        if kind in DENSE_KINDS:
            target = Objective(
                network("parseda", **DENSE), CRITERIA["HICO"] if kind == "dense" else None
            )
        else:
            target = objective("tagger" if kind == "tagger" else "parseda")
            target.criterion = CRITERIA[kind]
        trainer = Trainer(undisturbed(target), options(clip_norm=0), folder(tmp_path))
        trainer.module.train()
        parts = [collate(images[slice(*ends)], TEXTS) for ends in pairwise((0, *cuts, len(images)))]
        losses, norm = trainer._step(parts, 0.0)
        return (
            losses,
            norm,
            {name: p.grad for name, p in target.named_parameters() if p.grad is not None},
        )

    images = uneven(8, kind)
    losses, norm, gradients = step(())
    for cuts in ((4,), (2, 4, 6), (1, 4), (5, 8)):  # the last part of the last one is empty
        part_losses, part_norm, part_gradients = step(cuts)
        torch.testing.assert_close(part_losses, losses, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(part_norm, norm, rtol=1e-4, atol=0)
        for name, gradient in part_gradients.items():
            scale = float(gradients[name].abs().max())
            torch.testing.assert_close(
                gradient, gradients[name], rtol=1e-3, atol=1e-3 * scale + 1e-6
            )


def test_checkpointed_activations_change_nothing() -> None:
    batch = next(ToyFeed(1)._endless(0, 0))[0]

    def gradients(checkpointed: bool) -> tuple[Tensor, dict[str, Tensor]]:
        target = objective("parseda").train()
        if checkpointed:
            checkpoint_activations(target.network)
        torch.manual_seed(0)
        loss = target(batch)["loss"]
        loss.backward()
        return loss.detach(), {
            name: p.grad for name, p in target.named_parameters() if p.grad is not None
        }

    plain = gradients(False)
    recomputed = gradients(True)
    assert torch.equal(plain[0], recomputed[0])
    torch.testing.assert_close(recomputed[1], plain[1])


def test_the_average_is_what_is_saved_and_validated(tmp_path: Path) -> None:
    trainer = Trainer(objective(), options(ema=0.5, epochs=1), folder(tmp_path))
    trainer.fit(ToyFeed(3))
    saved = final(tmp_path)
    trained = dict(trainer.objective.network.named_parameters())
    name = "queries.coord_proj.weight"
    assert torch.equal(saved[name], trainer.ema.values[name])
    assert not torch.equal(saved[name], trained[name])


def test_steps_go_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first checkpoint is written only once the step after it has been made."""
    next_step = Event()
    save = Checkpoints.save
    train_step = Trainer._step

    def step(trainer: Trainer, *arguments: object) -> object:
        result = train_step(trainer, *arguments)
        if trainer.position.step == 1:
            next_step.set()
        return result

    def save_late(checkpoints: Checkpoints, *arguments: object) -> Path:
        assert next_step.wait(60)
        return save(checkpoints, *arguments)

    monkeypatch.setattr(Trainer, "_step", step)
    monkeypatch.setattr(Checkpoints, "save", save_late)
    at_once = Trainer(objective(), options(epochs=1), folder(tmp_path), checkpoint_every=1)
    at_once.fit(ToyFeed(3))
    assert (tmp_path / "last").resolve().name == "step-00000003"
    resumed = read_state(tmp_path / "checkpoints" / "step-00000002")[0]
    assert (resumed.epoch, resumed.done) == (0, 2)


def test_a_checkpoint_that_cannot_be_written_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", fail)
    trainer = Trainer(objective(), options(epochs=9), folder(tmp_path), checkpoint_every=1)
    with pytest.raises(OSError, match="No space left"):
        trainer.fit(ToyFeed(3))
    assert trainer.position.step < 27


def test_a_benchmark_may_choose_the_best(tmp_path: Path) -> None:
    scores = iter([{"hico": 0.5}, {"hico": 0.25}, {}])
    rows: list[Metrics] = []
    choosing = {"report": rows.append, "benchmark": lambda: next(scores), "best_by": "hico"}
    trainer = Trainer(objective(), options(epochs=3), folder(tmp_path), **choosing)
    trainer.fit(ToyFeed(1, validate=True))
    assert [row.get("hico") for row in rows if row["event"] == "validation"] == [0.5, 0.25, None]
    assert (tmp_path / "best").resolve().name == "step-00000001"


class BrokenFeed(ToyFeed):
    """The second image of the second step is not finite."""

    def _batches(self, epoch: int, first: int):  # type: ignore[no-untyped-def]
        for step, parts in enumerate(super()._batches(epoch, first), first):
            if step == 1:
                parts[0].pixel_values[1] = float("nan")
            yield parts


@pytest.mark.parametrize("kind", ["tagger", "parseda"])
def test_a_loss_that_is_no_number_names_the_image(tmp_path: Path, kind: str) -> None:
    trainer = Trainer(objective(kind), options(), folder(tmp_path))
    feed = BrokenFeed(3)
    culprit = list(ToyFeed(3)._batches(0, 0))[1][0].image_ids[1]
    with pytest.raises(DivergenceError, match=f"step 2: .*caused by image {culprit};"):
        trainer.fit(feed)
    (saved,) = tmp_path.glob("diverged-step-*/process-0")
    assert json.loads((saved / "batch.json").read_text())["images"][1] == culprit
    assert load_file(saved / "batch.safetensors")["pixel_values"][1].isnan().all()


def test_a_batch_of_no_images_moves_nothing() -> None:
    target: Objective = objective("parseda").train()
    nothing = {
        "pixel_values": torch.zeros(0, 3, 0, 0),
        "padding": torch.zeros(0, 0, 0, dtype=torch.bool),
    }
    full = next(ToyFeed(1)._endless(0, 0))[0]
    losses = target(replace(full, image_ids=(), triplets=(), sizes=(), **nothing))
    losses["loss"].backward()
    assert float(losses["loss"].detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in target.parameters())
