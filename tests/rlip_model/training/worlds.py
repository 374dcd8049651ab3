"""A toy dataset for the tests of training: coloured squares, left or right of each other."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from rlip_model.dense_head import LabelledBoxes
from rlip_model.losses import DetectionCriterion, TaggerCriterion
from rlip_model.model import RLIPModel, build_model
from rlip_model.presets import KINDS, tiny_sizes
from rlip_model.settings import Optimisation
from rlip_model.targets import Triplets
from rlip_model.text import build_tokenizer
from rlip_model.training.batches import TrainingBatch, TrainingExample, collate
from rlip_model.training.objective import Objective
from rlip_model.training.sampling import Texts
from rlip_model.training.state import Checkpoints

COLOURS = ("red", "green", "blue")
TEXTS = Texts((*COLOURS, "no objects"), ("left of", "right of"))
SIDE = 64
SMALLER = {
    "swin_embed_dim": 6, "swin_heads": (1, 1, 2, 2), "swin_depths": (1, 1, 1, 1), "encoder_layers": 2,
    "fusion_interval": 1, "decoder_layers": 2, "num_points": 2, "num_queries": 8, "drop_path": 0.0,
}  # fmt: skip
WORDS = (*TEXTS.objects, *TEXTS.relations, "one two three four five six seven eight")
DENSE = {"backbone": "convolutional", "conv_width": 8, "dense_head": True, "proposals": 3}


def example(number: int) -> TrainingExample:
    """Two squares of different colours, and how the first lies to the second."""
    generator = torch.Generator().manual_seed(number)
    first, second = torch.randperm(3, generator=generator)[:2].tolist()
    left = bool(torch.rand((), generator=generator) < 0.5)
    pixels = torch.zeros(3, SIDE, SIDE)
    boxes = []
    for colour, column in ((first, 8 if left else 40), (second, 40 if left else 8)):
        top = int(torch.randint(4, 44, (), generator=generator))
        pixels[colour, top : top + 16, column : column + 16] = 2.0
        boxes.append(torch.tensor([[column + 8, top + 8, 16, 16]]) / SIDE)
    relations = torch.tensor([[1.0, 0.0] if left else [0.0, 1.0]])
    triplets = Triplets(
        boxes[0], boxes[1], torch.tensor([first]), torch.tensor([second]), relations
    )
    objects = LabelledBoxes(torch.cat(boxes), torch.tensor([first, second]))
    return TrainingExample(f"toy-{number}", pixels, triplets, (SIDE, SIDE), objects)


class ToyFeed:
    """`steps` batches of `batch` images, the same ones in every epoch, in an order of its own."""

    def __init__(self, steps: int, batch: int = 2, validate: bool = False) -> None:
        self.steps_per_epoch = steps
        self.batch = batch
        self.validate = validate

    def read(
        self, epoch: int, step: int
    ) -> AbstractContextManager[Iterator[Sequence[TrainingBatch]]]:
        return nullcontext(self._endless(epoch, step))

    def validation(self) -> AbstractContextManager[Iterator[TrainingBatch]] | None:
        return nullcontext(parts[0] for parts in self._batches(0, 0)) if self.validate else None

    def _endless(self, epoch: int, step: int) -> Iterator[Sequence[TrainingBatch]]:
        while True:
            yield from self._batches(epoch, step)
            epoch = epoch + 1
            step = 0

    def _batches(self, epoch: int, first: int) -> Iterator[Sequence[TrainingBatch]]:
        images = self.steps_per_epoch * self.batch
        order = torch.randperm(images, generator=torch.Generator().manual_seed(epoch)).tolist()
        for step in range(first, self.steps_per_epoch):
            chosen = list(map(example, order[step * self.batch : (step + 1) * self.batch]))
            yield [collate(chosen, TEXTS)]


def network(kind: str = "tagger", seed: int = 0, **changes: object) -> RLIPModel:
    tokenizer = build_tokenizer(WORDS)
    torch.manual_seed(seed)
    model = build_model(KINDS[kind](**{**tiny_sizes(len(tokenizer)), **SMALLER, **changes}))
    model.set_tokenizer(tokenizer)
    return model


def objective(kind: str = "tagger", seed: int = 0) -> Objective:
    criterion = TaggerCriterion() if kind == "tagger" else DetectionCriterion()
    return Objective(network(kind, seed), criterion)


def options(**changes: float) -> Optimisation:
    return Optimisation(
        **{"epochs": 2, "lr": 1e-3, "lr_backbone": 1e-3, "lr_text": 1e-3, **changes}
    )


def folder(path: Path) -> Checkpoints:
    return Checkpoints(path, keep=2)
