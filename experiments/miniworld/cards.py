"""The cards (README.md) of the packaged miniworld models: how they were trained, and how good they
are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from experiments.miniworld import caption_quality, detector_quality, network_quality
from experiments.miniworld.caption_quality import CaptionQuality
from experiments.miniworld.captioner import CaptionerConfig
from experiments.miniworld.detector_quality import DetectorQuality
from experiments.miniworld.network_quality import TaggerQuality
from sgpipe.recipe import PackagedModel
from sgpipe.training.recipe import TrainRecipe

CAPTIONER_CARD = """\
# The miniworld's captioner

A tiny BLIP (`BlipForConditionalGeneration` of transformers, {parameters:,} parameters, {megabytes:.1f} MB in half
precision) that captions images of sgpipe's miniworld. It was trained from scratch, without other weights or data, and
is the default captioner of `sgpipe generate`.

## How it was made

    python -m experiments.miniworld.train_captioner --out FOLDER    # part of `make miniworld-models`

Training took {seconds:,.0f} CPU-seconds on the first {train_images:,} images of the train split, each mirrored half of
the time. The captions of an image state its composed relations, one per caption ("a man riding a horse"). In the first
{dense_share:.0%} of {steps:,} steps with {batch_size} images each, a linear layer over the patches learned to predict
the things in each patch, what they do, and what is done to them. In the remaining steps captions were learned together
with this task. The linear layer was then discarded.

```yaml
{recipe}```

## How good it is

    python -m experiments.miniworld.caption_quality --captioner FOLDER --images {images}

On the first {images} images of the val split, which has the same kinds of relations as the train split but other
images:

{rows}

A caption is *correct* if the pipeline's parser finds at least one relation in it, and all its relations hold between
things of these classes in the image. *Cover composed*: share of the composed relations that the captions of their image
state; *cover all*: also counts the relations that these imply. The baselines are the greedy captions of other images,
and the statements most often true of two classes in an image, chosen without seeing it.

The nucleus samples by predicate:

{predicates}

## Limits

The model is made for images of the miniworld; its captions of any other image are meaningless.
"""

NETWORK_CARD = """\
# The miniworld's {title}

{what}
It was trained from scratch, without other weights or data. {parameters:,} parameters, {megabytes:.1f} MB in half
precision. {use}

## How it was made

    make miniworld-models

Training took {seconds:,.0f} CPU-seconds, not counting the rendering of images: {epochs} epochs on the first
{train_images:,} images of the train split, with their complete ground truth, by
`sgpipe train pipelines/miniworld/{name}.yaml`{start}:

```yaml
{recipe}```

## How good it is

{quality}

## Limits

The model is made for images of the miniworld, with 15 classes and 21 predicates; its scores on any other image are
meaningless.
"""

TAGGER_QUALITY = """\
    python -m experiments.miniworld.network_quality --images {images}

The complete pipeline labelled {images} images of the val split, which has the same kinds of relations as the train
split but other images, and of the compositional split, whose (subject, predicate, object) combinations never occur in
training. The boxes are given; the captions are those of the tiny BLIP, or the miniworld's own (*oracle*).

{rows}

*All matching pairs* is the same run without a tagger: every pair of boxes of the classes that a caption names, with
every predicate it states for them. *Any pair*: with `pair.candidates: image`, every pair of boxes may have every
predicate that the captions state. *From*: the confidence from which relations count. *Precision*: share of them that
are correct. *Recall*: share of the correct relations that are among them. *AP*: average precision over all confidences.
Correct is every relation that holds (*all*), or those alone that the image was composed to show (*composed*).

On given pairs (all pairs of an image, up to 20, related pairs first) with all 21 predicates, against the complete
ground truth: average precision {given_pairs}.

With captions of the tiny BLIP, by predicate, from confidence 0.2 on and against all relations:

{predicates}"""

PARSEDA_QUALITY = """\
    python -m experiments.miniworld.detector_quality --images {images}

On {images} images of each split:

{rows}

*AP50*: of its boxes, by COCO's protocol. *Labels*: relations of confidence 0.2 or more that the pipeline finds between
its boxes, against every relation that holds (*all*), or those that the image was composed to show. *HOI mAP*: by
HICO-DET's protocol, of what persons do. *Triplet AP*: of relations between any classes, whose boxes have an IoU of at
least 0.5 with their ground truth.
"""


@dataclass(frozen=True)
class TrainingCost:
    """The CPU-seconds of a training, and the number of parameters."""

    seconds: float
    parameters: int


def markdown_table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is the header."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *body])


def write_captioner_card(
    folder: Path, config: CaptionerConfig, cost: TrainingCost, quality: CaptionQuality
) -> None:
    """Write README.md into the captioner's folder."""
    card = CAPTIONER_CARD.format(
        parameters=cost.parameters,
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        seconds=cost.seconds,
        recipe=yaml.safe_dump(config.model_dump(), sort_keys=False),
        rows=markdown_table(caption_quality.quality_rows(quality)),
        predicates=markdown_table(caption_quality.predicate_rows(quality)),
        images=quality.images,
        **config.model_dump(include={"train_images", "steps", "batch_size", "dense_share"}),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_tagger_card(
    folder: Path,
    recipe: TrainRecipe,
    train_images: int,
    cost: TrainingCost,
    measured: TaggerQuality,
) -> None:
    """Write README.md into the tagger's folder."""
    quality = TAGGER_QUALITY.format(
        images=measured.images,
        rows=markdown_table(network_quality.quality_rows(measured)),
        given_pairs=", ".join(
            f"{value:.3f} on {split}" for split, value in measured.given_pairs.items()
        ),
        predicates=markdown_table(network_quality.predicate_rows(measured)),
    )
    description = (
        "A tiny R-Tagger that scores the relations between given boxes in images of sgpipe's"
        " miniworld."
    )
    use = "It is the default tagger of `sgpipe generate`."
    _write(folder, "tagger", ("R-Tagger", description, use), recipe, train_images, cost, quality)


def write_parseda_card(
    folder: Path,
    recipe: TrainRecipe,
    train_images: int,
    cost: TrainingCost,
    images: int,
    measured: Mapping[str, DetectorQuality],
) -> None:
    """Write README.md into the detector's folder; `measured`: by split."""
    quality = PARSEDA_QUALITY.format(
        images=images, rows=markdown_table(detector_quality.quality_rows(measured))
    )
    description = (
        "A tiny ParSeDA that detects the things in images of sgpipe's miniworld and their"
        " relations."
    )
    use = (
        "It is the detector of `sgpipe label --recipe miniworld`, and a start for `sgpipe train"
        " --init`."
    )
    _write(folder, "parseda", ("ParSeDA", description, use), recipe, train_images, cost, quality)


def _write(
    folder: Path,
    name: PackagedModel,
    words: tuple[str, str, str],
    recipe: TrainRecipe,
    train_images: int,
    cost: TrainingCost,
    quality: str,
) -> None:
    title, description, use = words
    settings = recipe.model_dump(
        mode="json", include={"model", "data", "loss", "optimisation"}, exclude_defaults=True
    )
    settings["data"].pop("train", None)
    card = NETWORK_CARD.format(
        title=title,
        start=", from the detector of detector.yaml" if name == "parseda" else "",
        what=description,
        use=use,
        name=name,
        parameters=cost.parameters,
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        seconds=cost.seconds,
        epochs=recipe.optimisation.epochs,
        train_images=train_images,
        recipe=yaml.safe_dump(settings, sort_keys=False),
        quality=quality,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
