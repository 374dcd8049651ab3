"""Train the layout model: `python -m experiments.layout DATA --instances INSTANCES --out FOLDER`.

DATA is a folder with the line form (train.jsonl.gz, val.jsonl.gz; see `data`), or a file of V-COCO
that `sgpipe import vcoco` reads, such as instances_vcoco_trainval.json. INSTANCES are COCO's, such
as instances_train2014.json. Every image is then an example twice: with V-COCO's boxes, which are
those that people use, and with all of COCO's, so that things that nobody touches are negatives,
too. Without --instances only the first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from experiments.command import run_command
from experiments.layout.data import (
    SPLITS,
    AnnotatedImage,
    join_instances,
    read_instances,
    read_lines,
    read_vcoco,
    refuse_test_images,
)
from sgpipe.errors import UserError
from sgpipe.stages.tag.layout import ImageLayout
from sgpipe.stages.tag.layout.fit import LayoutExample, LayoutSettings, fit_layout
from sgpipe.utils import console
from sgpipe.utils.console import count

# in the loss, of images with V-COCO's boxes, beside 1 of images with all of COCO's
OWN_BOXES_WEIGHT = 2.0


def read_images(data: Path, instances: Mapping[int, ImageLayout]) -> list[AnnotatedImage]:
    """Read the images of the line form or of V-COCO.

    Raises:
        UserError: the data is of another form, or has images of V-COCO's test set
    """
    if data.is_dir():
        images = [image for split in SPLITS for image in read_lines(data / split)]
    elif instances:
        images = read_vcoco(data, instances)
    else:
        raise UserError(
            f"{data} has no sizes of images: give COCO's annotations of them (--instances FILE)"
        )
    refuse_test_images(images, data)
    return images


def make_examples(
    images: Sequence[AnnotatedImage], instances: Mapping[int, ImageLayout]
) -> list[LayoutExample]:
    """Return every image with its own boxes and, if there are COCO's, once more with all of
    these.
    """
    examples = [replace(image.example, weight=OWN_BOXES_WEIGHT) for image in images]
    for image in images:
        if image.image_id in instances:
            examples.append(join_instances(image, instances[image.image_id]).example)
    return examples


def main(
    data: Annotated[Path, typer.Argument(help="folder of the line form, or a file of V-COCO")],
    out: Annotated[Path, typer.Option(help="folder for the model")],
    instances: Annotated[Path | None, typer.Option(help="COCO's instances of the images")] = None,
) -> None:
    """Train the layout model that ships."""
    layouts = read_instances(instances) if instances else {}
    images = read_images(data, layouts)
    examples = make_examples(images, layouts)
    before = time.process_time()
    model = fit_layout(examples, LayoutSettings())
    model.save(out)
    seconds = time.process_time() - before
    examples_text = f"{count(len(examples), 'example')} of {count(len(images), 'image')}"
    console.output().print(f"{out}: a layout model of {examples_text}, {seconds:.0f} CPU-seconds")


if __name__ == "__main__":
    run_command(main)
