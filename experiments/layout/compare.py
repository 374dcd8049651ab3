"""What the layout model needs: `python -m experiments.layout.compare DATA --instances INSTANCES`.

Trains variants on four fifths of the training images, measures them on the last fifth, and appends
the figures to benchmarks/results/layout.jsonl, of which `page` makes tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from torch import Tensor

from experiments.command import run_command
from experiments.layout.__main__ import make_examples, read_images
from experiments.layout.data import PERSON, AnnotatedImage, join_instances, read_instances
from experiments.layout.measures import Judged
from experiments.layout.page import RESULTS, measure, score, write_figures, write_page
from sgpipe.stages.tag.layout import ImageLayout, LayoutModel
from sgpipe.stages.tag.layout.fit import (
    Fitter,
    LayoutExample,
    LayoutNetwork,
    LayoutSettings,
    Vocabulary,
)

FOLDS = 5
SETTINGS = LayoutSettings(networks=1, epochs=10)
ANY_THING = "thing"

# Columns of `geometry.describe`.
GROUPS = {
    "the two boxes together": range(22),
    "size, shape and place of each box": range(22, 40),
    "counts": range(40, 43),
}

Instances = Mapping[int, ImageLayout]


class ColumnFitter(Fitter):
    """Trains without some of the numbers that describe pairs."""

    left_out: Sequence[int] = ()

    def standardise(self) -> None:
        super().standardise()
        self.scale[list(self.left_out)] = 0


class PairFitter(Fitter):
    """Trains a network that sees a pair without its rivals."""

    def make_network(self) -> LayoutNetwork:
        network = super().make_network()
        weight = network.get_parameter("decide.0.weight")
        width = self.settings.width
        weight.data[:, width:] = 0

        def without_rivals(gradient: Tensor) -> Tensor:
            masked = gradient.clone()
            masked[:, width:] = 0
            return masked

        weight.register_hook(without_rivals)
        return network


def without(columns: Sequence[int]) -> type[Fitter]:
    """Return a fitter that does not see these columns."""
    return type("Without", (ColumnFitter,), {"left_out": columns})


def class_free(image: AnnotatedImage) -> AnnotatedImage:
    """Return an image whose things have no classes but one."""
    return replace(image, layout=without_classes(image.layout))


def without_classes(layout: ImageLayout) -> ImageLayout:
    classes = [name if name == PERSON else ANY_THING for name in layout.classes]
    return replace(layout, classes=classes)


@dataclass(frozen=True)
class Variant:
    """How a model is trained, and whether it knows the classes of things."""

    name: str
    examples: Sequence[LayoutExample]
    fitter: type[Fitter] = Fitter
    knows_classes: bool = True

    def train(self) -> LayoutModel:
        return self.fitter(self.examples, Vocabulary.of(self.examples), SETTINGS).fit()

    def view(self, image: AnnotatedImage) -> AnnotatedImage:
        """Return what the model sees of an image."""
        return image if self.knows_classes else class_free(image)


def variants(images: Sequence[AnnotatedImage], instances: Instances) -> list[Variant]:
    """Return what is compared, trained with these images."""
    both = make_examples(images, instances)
    of_vcoco = both[: len(images)]
    joined = both[len(images) :]
    rows = [
        Variant("network", both),
        Variant("network that saw V-COCO's boxes only", of_vcoco),
        Variant("network that saw COCO's boxes only", joined),
        Variant("network without rivals", both, PairFitter),
    ]
    for name, columns in GROUPS.items():
        rows.append(Variant(f"network without {name}", both, without(columns)))
    free = [replace(example, layout=without_classes(example.layout)) for example in both]
    rows.append(Variant("network without classes", free, knows_classes=False))
    return rows


def main(
    data: Annotated[Path, typer.Argument(help="folder of the line form")],
    instances: Annotated[Path, typer.Option(help="COCO's instances of the images")],
    folder: Annotated[Path, typer.Option(help="folder of the page")] = RESULTS,
) -> None:
    """Compare variants of the layout model."""
    layouts = read_instances(instances)
    images = read_images(data, layouts)
    folds = np.random.default_rng(0).permutation(len(images)) % FOLDS
    training = [image for image, fold in zip(images, folds, strict=True) if fold]
    test_images = [image for image, fold in zip(images, folds, strict=True) if not fold]
    joined = [join_instances(image, layouts[image.image_id]) for image in test_images]
    rows: list[dict[str, Any]] = []
    for variant in variants(training, layouts):
        model = variant.train()
        row: dict[str, Any] = {"model": variant.name}
        for kind, held_out in {"V-COCO": test_images, "COCO": joined}.items():
            seen = [variant.view(image) for image in held_out]
            judged = Judged.of(seen, model.actions)
            row[kind] = measure(judged, *score(model, seen, judged))
        rows.append(row)
        write_figures(folder, "comparison", rows)
    write_page(folder)


if __name__ == "__main__":
    run_command(main)
