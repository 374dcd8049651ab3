"""How the miniworld's captioner learns.

With the captions' loss alone a tiny BLIP learns the things of a picture but not who does what to whom. So a
linear layer over its patches first learns what each of them shows, does and has done to it; then captions
are learned beside it, all true ones of a picture at once. The layer is left behind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipForConditionalGeneration, PreTrainedTokenizerBase
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from sgpipe.errors import UserError
from sgpipe.miniworld.captioner import build_captioner, prompt_ids, whiten_patches
from sgpipe.miniworld.captioner_config import CaptionerConfig
from sgpipe.miniworld.captioner_data import DENSE_LABELS, Lessons
from sgpipe.stages.blip_vision import fuse_vision_attention

_NO_TARGET = -100
# Pictures whose patches are analysed before training.
_WHITENED = 400


class Losses(NamedTuple):
    dense: float
    caption: float


class Trainer:
    """A captioner and what it is trained with. Everything random follows from the seed of `config`."""

    def __init__(self, config: CaptionerConfig, tokenizer: PreTrainedTokenizerBase, lessons: Lessons) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.lessons = lessons
        self.prompt = len(prompt_ids(tokenizer))
        self.model = build_captioner(config.model, tokenizer)
        fuse_vision_attention(self.model)
        self.dense = nn.Linear(config.model.vision_width, DENSE_LABELS)
        nn.init.constant_(self.dense.bias, -4.0)
        first = torch.arange(min(len(lessons), _WHITENED))
        whiten_patches(self.model, self.pixels(first, torch.zeros(len(first), dtype=torch.bool)))
        self.generator = torch.Generator().manual_seed(config.seed)
        self.optimizers = self._optimizers()
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(each, self._rate) for each in self.optimizers]
        self.batches = self._batches()
        self.step_number = 0

    def step(self) -> Losses:
        """One batch: the dense loss alone at first, then with the captions'."""
        pictures, flipped = next(self.batches)
        states = self.model.vision_model(pixel_values=self.pixels(pictures, flipped)).last_hidden_state
        dense = dense_loss(self.dense(states[:, 1:]), self.dense_targets(pictures, flipped))
        caption = states.new_zeros(())
        if self.step_number >= self.config.dense_share * self.config.steps:
            caption = caption_loss(self.model, states, self.lessons.tokens[pictures], self.prompt)
        loss = caption + self.config.dense_weight * dense
        self.model.zero_grad()
        self.dense.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*self.model.parameters(), *self.dense.parameters()], 1.0)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        self.step_number += 1
        return Losses(dense.item(), caption.item())

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon (Jordan, 2024) for the matrices of the layers, AdamW for all else.

        Raises UserError: this version of PyTorch has no Muon.
        """
        if not hasattr(torch.optim, "Muon"):
            raise UserError(f"training the captioner needs torch 2.9 or newer, this is {torch.__version__}")
        layers = [*self.model.vision_model.encoder.layers, *self.model.text_decoder.bert.encoder.layer]
        matrices = [weight for layer in layers for weight in layer.parameters() if weight.dim() == 2]
        own = {id(weight) for weight in matrices}
        others = [p for p in (*self.model.parameters(), *self.dense.parameters()) if id(p) not in own]
        config = self.config
        return [
            torch.optim.Muon(matrices, lr=config.matrix_learning_rate, weight_decay=config.weight_decay),
            torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def _rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero."""
        warmup = self.config.warmup
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(self.config.steps - warmup, 1)))

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers of pictures, and which of them are mirrored; every picture once before any comes again."""
        order = torch.empty(0, dtype=torch.long)
        size = min(self.config.batch_size, len(self.lessons))
        while True:
            if len(order) < size:
                order = torch.randperm(len(self.lessons), generator=self.generator)
            yield order[:size], torch.rand(size, generator=self.generator) < 0.5
            order = order[size:]

    def pixels(self, pictures: Tensor, flipped: Tensor) -> Tensor:
        pixels = self.lessons.pixels[pictures].float() / 255
        pixels = torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        return (pixels - mean) / std

    def dense_targets(self, pictures: Tensor, flipped: Tensor) -> Tensor:
        grid = self.config.model.grid
        targets = self.lessons.dense[pictures].unflatten(1, (grid, grid)).float()
        return torch.where(flipped[:, None, None, None], targets.flip(2), targets).flatten(1, 2)


def dense_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of [pictures, patches, DENSE_LABELS], summed over labels, a mean over patches."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1).mean()


def caption_loss(model: BlipForConditionalGeneration, states: Tensor, tokens: Tensor, prompt: int) -> Tensor:
    """Cross-entropy of all captions of all pictures, a mean over their tokens after the prompt.

    Args:
        states: [pictures, 1 + patches, vision width]; shared by the captions of a picture.
        tokens: [pictures, captions, length], see `Lessons`.
        prompt: number of tokens, [DEC] included, that every caption starts with.
    """
    present = tokens[:, :, 0] != 0
    picture = present.nonzero()[:, 0]
    ids = tokens[present]
    ids = ids[:, : int((ids != 0).sum(1).max())]
    logits = model.text_decoder(
        input_ids=ids[:, :-1],
        attention_mask=(ids[:, :-1] != 0).long(),
        encoder_hidden_states=states[picture],
        use_cache=False,
    ).logits
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == 0, _NO_TARGET)[:, prompt - 1 :]
    return F.cross_entropy(logits[:, prompt - 1 :].flatten(0, 1), targets.flatten(), ignore_index=_NO_TARGET)
