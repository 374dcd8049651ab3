"""Train a judge for the miniworld: `python -m experiments.miniworld.train_judge --out FOLDER`.

A tiny SigLIP, whose image encoder starts as the packaged captioner's, sees the crop of two things
with their outlines. Of each predicate that the miniworld knows for their classes it learns whether
it holds: the probability of the relation's text against the mean of its contrast texts, as
`ClipScorer` computes it, is trained by binary cross-entropy.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from experiments.command import run_command
from experiments.miniworld.cards import TrainingCost
from experiments.miniworld.judge import (
    JudgeConfig,
    build_judge,
    normalised,
    save_judge,
    save_tokenizer,
)
from experiments.miniworld.judge_data import NO_TEXT, JudgeData, claim_texts, render_judge_data
from experiments.miniworld.optimisation import Optimisation
from sgpipe.utils.console import Progress

_IMAGES_PER_MESSAGE = 1000
_STEPS_PER_MESSAGE = 50


class JudgeTrainer:
    """A judge with its optimisation and batches. All randomness derives from the seed of
    `config`.
    """

    def __init__(
        self, config: JudgeConfig, tokenizer: PreTrainedTokenizerBase, data: JudgeData
    ) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.data = data
        self.texts = claim_texts()
        self.model = build_judge(config, tokenizer)
        self.tokens = tokenizer(
            self.texts.texts, padding="max_length", truncation=True, return_tensors="pt"
        )
        self.generator = torch.Generator().manual_seed(config.seed)
        encoders: tuple[Any, Any] = (self.model.vision_model.encoder, self.model.text_model.encoder)
        self.optimisation = Optimisation(encoders, [*self.model.parameters()], config)
        self.batches = self._batches()

    def step(self) -> float:
        """Train on one batch; returns the loss."""
        odds, holds = self.odds(*next(self.batches))
        loss = F.binary_cross_entropy_with_logits(odds, holds)
        self.optimisation.minimise(loss)
        return loss.item()

    def odds(self, rows: Tensor, flipped: Tensor) -> tuple[Tensor, Tensor]:
        """The log odds of all possible relations of these crops, `[relations]`, and whether they
        hold.

        Args:
            rows: indices of crops, `[crops]`. flipped: which of them are mirrored, `[crops]`.
        """
        model: Any = self.model
        pixels = self.data.pixels[rows]
        pixels = normalised(torch.where(flipped[:, None, None, None], pixels.flip(3), pixels))
        subjects, objects = self.data.classes[rows].unbind(1)
        crop, predicate = self.texts.possible[subjects, objects].nonzero().unbind(1)
        stated = self.texts.own[subjects[crop], objects[crop], predicate]
        contrasts = self.texts.contrasts[subjects[crop], objects[crop], predicate]
        used, places = torch.cat([stated[:, None], contrasts.clamp(min=0)], 1).unique(
            return_inverse=True
        )
        tokens = {name: self.tokens[name][used] for name in ("input_ids", "attention_mask")}
        seen = F.normalize(_features(model.get_image_features(pixel_values=pixels)), dim=-1)
        text_features = F.normalize(_features(model.get_text_features(**tokens)), dim=-1)
        cosines = model.logit_scale.exp() * (text_features[places] * seen[crop][:, None]).sum(-1)
        against = cosines[:, 1:].masked_fill(contrasts == NO_TEXT, -torch.inf)
        mean = against.logsumexp(1) - (contrasts != NO_TEXT).sum(1).log()
        return cosines[:, 0] - mean, self.data.holds[rows][crop, predicate].float()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices of crops with a possible relation, and which are mirrored; each occurs once per
        epoch.
        """
        subjects, objects = self.data.classes.unbind(1)
        usable = self.texts.possible[subjects, objects].any(1).nonzero()[:, 0]
        order = torch.empty(0, dtype=torch.long)
        size = min(self.config.batch_size, len(usable))
        while True:
            if len(order) < size:
                order = usable[torch.randperm(len(usable), generator=self.generator)]
            yield order[:size], torch.rand(size, generator=self.generator) < 0.5
            order = order[size:]


def _features(output: Any) -> Tensor:
    """Features `[count, width]`; newer versions of transformers wrap them."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def train_judge(
    config: JudgeConfig, out: Path, progress: Progress, data: JudgeData | None = None
) -> TrainingCost:
    """Render crops, unless they are given, train a judge on them, and save it in `out`.

    The result depends on `config`, and in the last digits on the machine and its number of threads.
    """
    start = time.process_time()
    tokenizer = save_tokenizer(out)

    def rendered(count: int) -> None:
        if count % _IMAGES_PER_MESSAGE == 0 or count == config.images:
            progress.say(f"rendered {count:,} of {config.images:,} images")

    trainer = JudgeTrainer(config, tokenizer, data or render_judge_data(config, rendered))
    recent: deque[float] = deque(maxlen=_STEPS_PER_MESSAGE)
    for step in range(1, config.steps + 1):
        recent.append(trainer.step())
        if step % _STEPS_PER_MESSAGE == 0 or step == config.steps:
            seconds = time.process_time() - start
            progress.say(
                f"step {step:,} of {config.steps:,}: loss {fmean(recent):.4f}, {seconds:,.0f}"
                " CPU-seconds"
            )
    weights = sum(weight.numel() for weight in trainer.model.parameters())
    save_judge(trainer.model, config, tokenizer, out)
    return TrainingCost(time.process_time() - start, weights)


def main(
    out: Annotated[Path, typer.Option(help="folder for the judge")],
    steps: Annotated[int, typer.Option(min=1)] = JudgeConfig().steps,
    images: Annotated[
        int, typer.Option(min=1, help="number of training images")
    ] = JudgeConfig().images,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 1,
) -> None:
    """Train the judge of the miniworld. `experiments.miniworld.judge_quality` measures it."""
    torch.set_num_threads(threads)
    config = JudgeConfig(steps=steps, images=images, seed=seed)
    cost = train_judge(config, out, Progress(Console(stderr=True)))
    Console().print(
        f"{out}: {cost.parameters:,} weights, {cost.seconds:,.0f} CPU-seconds", soft_wrap=True
    )


if __name__ == "__main__":
    run_command(main)
