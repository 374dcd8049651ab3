"""The card that lies beside the captioner's weights: how it was made, and how good it is."""

from __future__ import annotations

from pathlib import Path

import yaml

from sgpipe.miniworld.caption_quality import Quality, predicate_rows, quality_rows
from sgpipe.miniworld.captioner_config import CaptionerConfig
from sgpipe.miniworld.cards import Making, markdown_table

_CARD = """\
# The miniworld's captioner

A tiny BLIP (`BlipForConditionalGeneration` of transformers, {parameters:,} parameters, {megabytes:.1f} MB in half
precision) that captions the pictures of sgpipe's drawn world, and nothing else. Made from scratch, with no other
weights and no other data. `sgpipe generate` uses it by default.

## How it was made

    python -m sgpipe.miniworld.train_captioner --out FOLDER    # as `make miniworld-models` does

In {seconds:,.0f} CPU-seconds: the first {pictures:,} pictures of the train split were drawn, each with all that was
composed in it as captions of one relation ("a man riding a horse"), and seen mirrored half of the time. In the first
{dense_share:.0%} of {steps:,} steps of {batch_size} pictures, a linear layer over the patches learned what each of them
shows, what that does and what is done to it; then the captions were learned beside it. The layer was left behind.

```yaml
{recipe}```

## How good it is

    python -m sgpipe.miniworld.caption_quality --captioner FOLDER --images {images}

On the first {images} pictures of the val split, whose relations occur in training but whose pictures do not:

{rows}

A caption is *true* if the pipeline's parser finds a relation in it and all it finds hold between things of the
classes named. *Cover composed*: so many of the relations that the pictures were made to show are stated by the
captions of their picture; *cover all*: also of those that follow from them. Then the greedy captions of other
pictures, and what is most often true of two classes that a picture shows, said without looking at it.

Of the nucleus samples, by what they state:

{predicates}

## Limits

It is made for pictures as the miniworld draws them; on any other picture its captions mean nothing.
"""


def write_card(folder: Path, config: CaptionerConfig, making: Making, quality: Quality) -> None:
    """Write README.md into the captioner's folder."""
    card = _CARD.format(
        parameters=making.parameters,
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        seconds=making.seconds,
        recipe=yaml.safe_dump(config.model_dump(), sort_keys=False),
        rows=markdown_table(quality_rows(quality)),
        predicates=markdown_table(predicate_rows(quality)),
        images=quality.images,
        **config.model_dump(include={"pictures", "steps", "batch_size", "dense_share"}),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
