"""Captions of the whole image, of its boxes, or of the regions of its box pairs, by a BLIP checkpoint.

A caption depends on the run's seed, the picture, its region and the sample's number, never on `batch_size`,
on the other records of a call, their order or their errors. Matrix products round differently for other
numbers of rows; so on a CPU every picture is a computation of its own, with all its samples, and this holds
to the bit. On a GPU pictures go through in padded groups of a fixed size. Between devices, number formats,
library versions or numbers of threads the noise stays the same but scores differ in their last digits:
rarely, a caption changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from sgpipe.devices import enough_memory, pick_device, pick_dtype
from sgpipe.errors import UserError
from sgpipe.images import ImageError, open_image
from sgpipe.recipe import CaptionConfig
from sgpipe.records import Caption, Record
from sgpipe.stages.blip import Blip, load_blip
from sgpipe.stages.blip_decoder import BlipDecoder
from sgpipe.stages.decoding import NucleusSampling, beam_captions, sample_captions
from sgpipe.stages.regions import Region, regions

_GPU_GROUP = 8
_REMEDY = "lower caption.samples, or raise caption.resources.gpus, so that fewer actors share it"


@dataclass(frozen=True)
class _Picture:
    record: Record
    region: Region
    pixels: torch.Tensor


class CaptionStage:
    """Fills `captions` with `samples` nucleus captions (or one by beam search) of every region of the scopes.

    `roots` maps a split to its image folder. Captions come in the order of `config.scopes`, regions and
    samples; equal samples are kept, since their number tells how likely the caption is.
    """

    name = "caption"
    fills: tuple[str, ...] = ("captions", "status", "error")

    def __init__(self, config: CaptionConfig, roots: Mapping[str, Path], seed: int) -> None:
        self.config = config
        self.roots = roots
        self.seed = seed
        self.resources = config.resources

    def setup(self) -> None:
        """Load the captioner.

        Raises UserError: it cannot be used (see `load_blip`), or `max_tokens` leaves no room for a caption.
        """
        if self.config.captioner is None:
            raise UserError("caption.captioner is not set: expected the folder or hub id of a BLIP captioner")
        torch.set_num_threads(max(1, int(self.resources.cpus)))
        self.device = pick_device(self.config.device)
        dtype = pick_dtype(self.config.dtype, self.device)
        self.blip: Blip = load_blip(self.config.captioner, self.config.image_size, self.device, dtype)
        self.decoder = BlipDecoder(self.blip.model)
        self.prompt = self.blip.prompt_ids(self.config.prompt)
        self.group = _GPU_GROUP if self.device.type == "cuda" else 1
        self._check_lengths()

    def __call__(self, records: list[Record]) -> list[Record]:
        pictures = self._pictures(records)
        while batch := list(islice(pictures, self.config.batch_size)):
            for first in range(0, len(batch), self.group):
                with enough_memory(self.device, _REMEDY):
                    self._caption(batch[first : first + self.group])
        return records

    def _check_lengths(self) -> None:
        most, least = self.config.max_tokens, self.config.min_tokens
        positions = self.blip.text_config.max_position_embeddings
        if most > positions:
            raise UserError(f"caption.max_tokens is {most}; this captioner has {positions} positions")
        if most <= len(self.prompt) or most < least:
            raise UserError(
                f"caption.max_tokens is {most}: expected at least min_tokens ({least}) and more than the "
                f"{len(self.prompt)} tokens of the prompt and its start, which count"
            )

    def _pictures(self, records: Sequence[Record]) -> Iterator[_Picture]:
        """Every region to caption, opened when asked for; unusable images become error rows."""
        for record in records:
            if not record.ok:
                continue
            record.captions = []
            try:
                image = open_image(self.roots, record)
            except ImageError as reason:
                record.fail(self.name, str(reason))
                continue
            for region in regions(record, self.config.scopes, self.config.max_crops):
                yield _Picture(record, region, self.blip.prepare(_crop(image, region)))

    def _caption(self, pictures: Sequence[_Picture]) -> None:
        padded = [*pictures, *[pictures[-1]] * (self.group - len(pictures))]
        states = self.blip.encode(torch.stack([picture.pixels for picture in padded]))
        keys = [_noise_key(self.seed, picture) for picture in padded]
        for picture, samples in zip(pictures, self._decode(states, keys), strict=False):
            scope, boxes = picture.region.scope, picture.region.boxes
            picture.record.captions += [Caption(self.blip.text(tokens), scope, list(boxes)) for tokens in samples]

    def _decode(self, states: torch.Tensor, keys: list[int]) -> list[list[list[int]]]:
        config = self.config
        if config.decoding == "beam":
            return beam_captions(
                self.blip.model, states, self.prompt, config.beams, config.min_tokens, config.max_tokens
            )
        sampling = NucleusSampling(
            config.samples,
            config.top_p,
            config.temperature,
            config.min_tokens,
            config.max_tokens,
            end=self.blip.text_config.sep_token_id,
        )
        try:
            return sample_captions(self.decoder, states, self.prompt, keys, sampling)
        except FloatingPointError as reason:
            raise UserError(f"captioner {config.captioner!r}: {reason}") from None


def _crop(image: Image.Image, region: Region) -> Image.Image:
    return image if region.window is None else image.crop(region.window)


def _noise_key(seed: int, picture: _Picture) -> int:
    """63 bits that name the noise of a region, the same in every process."""
    record, region = picture.record, picture.region
    name = [seed, record.dataset, record.split, record.image_id, region.scope, list(region.boxes)]
    digest = hashlib.blake2b(json.dumps(name).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
