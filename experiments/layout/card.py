"""The card (README.md) of the layout model that ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from experiments.miniworld.cards import markdown_table
from sgpipe.stages.tag.layout.model import MODEL
from sgpipe.utils.atomic import write_text

CARD = """\
# The layout model

Which boxes of a photograph interact, and how, read from the boxes and their classes alone, without pixels.
{parameters:,} parameters, {megabytes:.2f} MB in half precision, safetensors and JSON.

## How it was made

    python -m experiments.layout DATA --instances INSTANCES --out FOLDER

It learned from the 4,947 images of [V-COCO](https://github.com/s-gupta/v-coco)'s train and val splits that have pairs
(annotations only; V-COCO's pairs by [fredzzhang/vcoco](https://github.com/fredzzhang/vcoco), MIT; COCO's boxes and
keypoints, CC BY 4.0; its instances were read from a copy in YOLO's format, which has boxes to six digits). Each image
was seen twice: with V-COCO's boxes (persons, and the things that somebody uses) and with all boxes of COCO, so that
things that nobody touches are negatives, too. Images of V-COCO's test set, to which
those with captions that sgpipe measures on belong, and of HICO-DET were not trained on.

## How good it is

{rows}

Pairs of a person and a thing on half of V-COCO's test images and on HICO-DET's, of which it saw no image.
benchmarks/results/layout.md has all figures, baselines, calibration, and what each part of the model is for.

## Limits

* Subjects are persons. Pairs of two persons have low probabilities; V-COCO annotates few.
* It knows V-COCO's 24 actions. What V-COCO does not annotate (wear, stand on, next to) it does not know.
* It knows COCO's 80 classes and their synonyms. Boxes of any other class are scored without their class.
* With boxes of all things, as in COCO, about one relation in five above the probability that finds 80 % is wrong by
  V-COCO's annotations; with boxes of only the things that people use, one in thirty or fewer.
* It was trained on V-COCO's training images. Labels made by it must not be used where results on V-COCO or on any
  interactions are reported as zero-shot.
"""

COLUMNS = ("AP", "precision at 0.8", "precision at 0.9", "actions mAP")


def write_card(folder: Path, measured: Sequence[Mapping[str, Any]]) -> None:
    """Write README.md beside the weights in a folder, with the figures that were measured."""
    rows = [["boxes of", *COLUMNS]]
    for row in measured:
        if row["method"] == "layout":
            rows.append(
                [row["data"], *(f"{row[name]:.3f}" if name in row else "" for name in COLUMNS)]
            )
    weights = folder / MODEL
    card = CARD.format(
        parameters=sum(value.size for value in load_file(weights).values()),
        megabytes=weights.stat().st_size / 1e6,
        rows=markdown_table(rows),
    )
    write_text(folder / "README.md", card)
