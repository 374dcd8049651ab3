"""What the cards of all models of the drawn world have in common.

The card that lies beside the captioner's weights: how it was made, and how good it is.

The cards that lie beside the networks' weights: how they were made, and how good they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from experiments.miniworld import caption_quality, network_quality
from experiments.miniworld.caption_quality import Quality
from experiments.miniworld.captioner import CaptionerConfig
from experiments.miniworld.network_quality import TaggerQuality
from sgpipe.recipe import NetworkName
from sgpipe.training.recipe import TrainRecipe


@dataclass(frozen=True)
class Making:
    """What the training of a model took, in CPU-seconds, and gave."""

    seconds: float
    parameters: int


def markdown_table(rows: list[list[str]]) -> str:
    """Rows of cells, the first of them the heads, as Markdown."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *body])


_CARD = """\
# The miniworld's captioner

A tiny BLIP (`BlipForConditionalGeneration` of transformers, {parameters:,} parameters, {megabytes:.1f} MB in half
precision) that captions the images of sgpipe's drawn world, and nothing else. Made from scratch, with no other
weights and no other data. `sgpipe generate` uses it by default.

## How it was made

    python -m experiments.miniworld.train_captioner --out FOLDER    # as `make miniworld-models` does

In {seconds:,.0f} CPU-seconds: the first {train_images:,} images of the train split were drawn, each with all that was
composed in it as captions of one relation ("a man riding a horse"), and seen mirrored half of the time. In the first
{dense_share:.0%} of {steps:,} steps of {batch_size} images, a linear layer over the patches learned what each of them
shows, what that does and what is done to it; then the captions were learned beside it. The layer was left behind.

```yaml
{recipe}```

## How good it is

    python -m experiments.miniworld.caption_quality --captioner FOLDER --images {images}

On the first {images} images of the val split, whose relations occur in training but whose images do not:

{rows}

A caption is *true* if the pipeline's parser finds a relation in it and all it finds hold between things of the
classes named. *Cover composed*: so many of the relations that the images were made to show are stated by the
captions of their image; *cover all*: also of those that follow from them. Then the greedy captions of other
images, and what is most often true of two classes that an image shows, said without looking at it.

Of the nucleus samples, by what they state:

{predicates}

## Limits

It is made for images as the miniworld draws them; on any other image its captions mean nothing.
"""


def write_card(folder: Path, config: CaptionerConfig, making: Making, quality: Quality) -> None:
    """Write README.md into the captioner's folder."""
    card = _CARD.format(
        parameters=making.parameters,
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        seconds=making.seconds,
        recipe=yaml.safe_dump(config.model_dump(), sort_keys=False),
        rows=markdown_table(caption_quality.quality_rows(quality)),
        predicates=markdown_table(caption_quality.predicate_rows(quality)),
        images=quality.images,
        **config.model_dump(include={"train_images", "steps", "batch_size", "dense_share"}),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


_NETWORK_CARD = """\
# The miniworld's {title}

{what}
Made from scratch, with no other weights and no other data. {parameters:,} parameters, {megabytes:.1f} MB in half
precision. {use}

## How it was made

    make miniworld-models

In {seconds:,.0f} CPU-seconds, not counting the images: {epochs} passes over the first {train_images:,} images of the
train split, with all that is true of them, by `sgpipe train pipelines/miniworld/{name}.yaml`:

```yaml
{recipe}```

## How good it is

{quality}

## Limits

It is made for images as the miniworld draws them, of 15 classes and 21 predicates; on any other image its scores
mean nothing.
"""

_TAGGER = """\
    python -m experiments.miniworld.network_quality --images {images}

{images} images of the val split, whose relations occur in training but whose images do not, and of the
compositional split, whose combinations of subject, predicate and object never occur there, labelled by the whole
pipeline, which is given the true boxes: with the captions of the tiny BLIP, and with those that the world itself
writes (*oracle*).

{rows}

*All matching pairs* is the same run without a tagger: every pair of boxes of the classes that a caption names, with
every predicate it states of them. *Precision*: of the relations from confidence 0.2 on, so many are true; *recall*: of
the relations that the images were composed of, so many are among them. *AP*: average precision over all confidences.

With pairs of boxes given (all of an image, up to 20, those that are related first) and all 21 predicates asked for,
of all that is true of them: average precision {given}.

With captions of the tiny BLIP, by predicate:

{predicates}"""

_PARSEDA = """\
On {images} images of each split, with all classes and predicates as labels, a triplet found if both boxes overlap
the true ones by an IoU of 0.5 and all three labels are right; R@K: of all true relations, so many are among an image's
best K:

{rows}"""


def write_tagger_card(
    folder: Path, recipe: TrainRecipe, train_images: int, making: Making, found: TaggerQuality
) -> None:
    """Write README.md into the tagger's folder."""
    quality = _TAGGER.format(
        images=found.images,
        rows=markdown_table(network_quality.quality_rows(found)),
        given=", ".join(f"{value:.3f} on {split}" for split, value in found.given.items()),
        predicates=markdown_table(network_quality.predicate_rows(found)),
    )
    what = "A tiny R-Tagger that says which pairs of boxes of sgpipe's drawn world carry which relation."
    use = "`sgpipe generate` uses it by default."
    _write(folder, "tagger", ("R-Tagger", what, use), recipe, train_images, making, quality)


def write_parseda_card(
    folder: Path,
    recipe: TrainRecipe,
    train_images: int,
    making: Making,
    images: int,
    found: dict[str, dict[str, float]],
) -> None:
    """Write README.md into the detector's folder; `found`: what it measured, by split."""
    columns = ("recall@20", "recall@50", "recall@100", "ap")
    rows = [["images", "R@20", "R@50", "R@100", "AP"]]
    rows += [[split, *(f"{values[name]:.1%}" for name in columns)] for split, values in found.items()]
    quality = _PARSEDA.format(images=images, rows=markdown_table(rows))
    what = "A tiny ParSeDA that finds the things of sgpipe's drawn world and their relations by itself."
    use = "`sgpipe predict` and `sgpipe train --init` take this folder."
    _write(folder, "parseda", ("ParSeDA", what, use), recipe, train_images, making, quality)


def _write(
    folder: Path,
    name: NetworkName,
    words: tuple[str, str, str],
    recipe: TrainRecipe,
    train_images: int,
    making: Making,
    quality: str,
) -> None:
    title, what, use = words
    settings = recipe.model_dump(mode="json", include={"model", "data", "loss", "optimisation"}, exclude_defaults=True)
    settings["data"].pop("train", None)
    card = _NETWORK_CARD.format(
        title=title,
        what=what,
        use=use,
        name=name,
        parameters=making.parameters,
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        seconds=making.seconds,
        epochs=recipe.optimisation.epochs,
        train_images=train_images,
        recipe=yaml.safe_dump(settings, sort_keys=False),
        quality=quality,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
