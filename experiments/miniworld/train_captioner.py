"""Train the miniworld's captioner: `python -m experiments.miniworld.train_captioner --out FOLDER`.

With the caption loss alone a tiny BLIP learns the things in an image, but not who does what to
whom. Therefore a linear layer over the patches is trained first, to predict the things in each
patch, the predicates they are subject or object of, and their partners. Then both losses are
trained together, with all captions of an image in one step. The linear layer is discarded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor, nn
from transformers import BlipForConditionalGeneration, PreTrainedTokenizerBase
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from experiments.command import run_command
from experiments.miniworld.caption_quality import measure, print_quality
from experiments.miniworld.captioner import (
    CaptionerConfig,
    build_captioner,
    caption_words,
    prompt_ids,
    save_captioner,
    save_tokenizer,
    whiten_patches,
)
from experiments.miniworld.captioner_data import DENSE_LABELS, CaptionerData, render_captioner_data
from experiments.miniworld.cards import TrainingCost, write_captioner_card
from experiments.miniworld.optimisation import Optimisation
from sgpipe.stages.caption.blip import fuse_vision_attention
from sgpipe.utils.config_file import load, recipe_folder
from sgpipe.utils.console import Progress

_IMAGES_PER_MESSAGE = 2000
_STEPS_PER_MESSAGE = 200
_NO_TARGET = -100
# Number of images for the initial patch embedding.
_WHITENING_IMAGES = 400


class Losses(NamedTuple):
    dense: float
    caption: float


class CaptionerTrainer:
    """A captioner with its optimisation and batches. All randomness derives from the seed of
    `config`.
    """

    def __init__(
        self, config: CaptionerConfig, tokenizer: PreTrainedTokenizerBase, data: CaptionerData
    ) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.data = data
        self.prompt = len(prompt_ids(tokenizer))
        self.model = build_captioner(config.model, tokenizer)
        fuse_vision_attention(self.model)
        self.dense = nn.Linear(config.model.vision_width, DENSE_LABELS)
        nn.init.constant_(self.dense.bias, -4.0)
        first = torch.arange(min(len(data), _WHITENING_IMAGES))
        whiten_patches(self.model, self.pixels(first, torch.zeros(len(first), dtype=torch.bool)))
        self.generator = torch.Generator().manual_seed(config.seed)
        layers = [
            *self.model.vision_model.encoder.layers,
            *self.model.text_decoder.bert.encoder.layer,
        ]
        self.optimisation = Optimisation(
            layers, [*self.model.parameters(), *self.dense.parameters()], config
        )
        self.batches = self._batches()
        self.step_number = 0

    def step(self) -> Losses:
        """Train on one batch: on the dense loss alone at first, later also on the caption loss."""
        rows, flipped = next(self.batches)
        states = self.model.vision_model(pixel_values=self.pixels(rows, flipped)).last_hidden_state
        dense = dense_loss(self.dense(states[:, 1:]), self.dense_targets(rows, flipped))
        caption = states.new_zeros(())
        if self.step_number >= self.config.dense_share * self.config.steps:
            caption = caption_loss(self.model, states, self.data.tokens[rows], self.prompt)
        loss = caption + self.config.dense_weight * dense
        self.optimisation.minimise(loss)
        self.step_number += 1
        return Losses(dense.item(), caption.item())

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices of images, and which of them are mirrored; every image occurs once per epoch."""
        order = torch.empty(0, dtype=torch.long)
        size = min(self.config.batch_size, len(self.data))
        while True:
            if len(order) < size:
                order = torch.randperm(len(self.data), generator=self.generator)
            yield order[:size], torch.rand(size, generator=self.generator) < 0.5
            order = order[size:]

    def pixels(self, rows: Tensor, flipped: Tensor) -> Tensor:
        pixels = self.data.pixels[rows].float() / 255
        pixels = torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)
        mean, std = (
            torch.tensor(value).view(3, 1, 1) for value in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        )
        return (pixels - mean) / std

    def dense_targets(self, rows: Tensor, flipped: Tensor) -> Tensor:
        grid = self.config.model.grid
        targets = self.data.dense[rows].unflatten(1, (grid, grid)).float()
        return torch.where(flipped[:, None, None, None], targets.flip(2), targets).flatten(1, 2)


def dense_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of [images, patches, DENSE_LABELS], summed over labels, a mean over
    patches.
    """
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1).mean()


def caption_loss(
    model: BlipForConditionalGeneration, states: Tensor, tokens: Tensor, prompt: int
) -> Tensor:
    """Mean cross-entropy of the tokens after the prompt, over all captions of all images.

    Args:
        states: [images, 1 + patches, vision width]; shared by the captions of an image.
        tokens: [images, captions, length], see `CaptionerData`.
        prompt: number of tokens of [DEC] and the prompt, which every caption starts with.
    """
    present = tokens[:, :, 0] != 0
    image = present.nonzero()[:, 0]
    ids = tokens[present]
    ids = ids[:, : int((ids != 0).sum(1).max())]
    logits = model.text_decoder(
        input_ids=ids[:, :-1],
        attention_mask=(ids[:, :-1] != 0).long(),
        encoder_hidden_states=states[image],
        use_cache=False,
    ).logits
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == 0, _NO_TARGET)[:, prompt - 1 :]
    return F.cross_entropy(
        logits[:, prompt - 1 :].flatten(0, 1), targets.flatten(), ignore_index=_NO_TARGET
    )


def train_captioner(config: CaptionerConfig, out: Path, progress: Progress) -> TrainingCost:
    """Render images, train a captioner on them, and save it in `out`.

    The result depends on `config`, and in the last digits on the machine and its number of threads.
    """
    start = time.process_time()
    tokenizer = save_tokenizer(out, caption_words())

    def rendered(count: int) -> None:
        if count % _IMAGES_PER_MESSAGE == 0 or count == config.train_images:
            progress.say(f"rendered {count:,} of {config.train_images:,} images")

    data = render_captioner_data(
        config.model, tokenizer, config.train_images, config.seed, rendered
    )
    trainer = CaptionerTrainer(config, tokenizer, data)
    recent: deque[Losses] = deque(maxlen=_STEPS_PER_MESSAGE)
    for step in range(1, config.steps + 1):
        recent.append(trainer.step())
        if step % _STEPS_PER_MESSAGE == 0 or step == config.steps:
            dense, caption = (fmean(losses) for losses in zip(*recent, strict=True))
            progress.say(
                f"step {step:,} of {config.steps:,}: dense loss {dense:.3f}, caption loss"
                f" {caption:.4f}, {time.process_time() - start:,.0f} CPU-seconds"
            )
    save_captioner(trainer.model, out)
    return TrainingCost(time.process_time() - start, trainer.model.num_parameters())


def make_captioner(config: CaptionerConfig, out: Path, images: int, progress: Progress) -> None:
    """Train the captioner, evaluate it on `images` images, print the results, and write its
    card.
    """
    cost = train_captioner(config, out, progress)
    quality = measure(str(out), images)
    print_quality(quality, Console())
    write_captioner_card(out, config, cost, quality)


def captioner_recipe(
    name: str = "captioner", overrides: Mapping[str, Any] | None = None
) -> CaptionerConfig:
    """Load a packaged recipe or a YAML file. Raises UserError: as `config_file.load`."""
    return load(CaptionerConfig, name, recipe_folder() / "miniworld", overrides or {})


def main(
    out: Annotated[Path, typer.Option(help="folder for the captioner")],
    recipe: Annotated[
        str, typer.Option(help="a recipe of pipelines/miniworld, or a YAML file")
    ] = "captioner",
    steps: Annotated[int | None, typer.Option(min=1, help="overrides the recipe")] = None,
    train_images: Annotated[int | None, typer.Option(min=1, help="overrides the recipe")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="overrides the recipe")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 1,
    images: Annotated[
        int, typer.Option(min=1, help="number of evaluation images of the val split")
    ] = 500,
) -> None:
    """Train the captioner of the miniworld, evaluate it, and write its card."""
    torch.set_num_threads(threads)
    options: dict[str, Any] = {"steps": steps, "train_images": train_images, "seed": seed}
    overrides = {key: value for key, value in options.items() if value is not None}
    make_captioner(captioner_recipe(recipe, overrides), out, images, Progress(Console(stderr=True)))


if __name__ == "__main__":
    run_command(main)
