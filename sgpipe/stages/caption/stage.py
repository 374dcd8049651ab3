"""The caption stage: captions of whole images, of boxes, or of the regions around box pairs, by a BLIP checkpoint.

A caption depends on the run's seed, the image, the region and the sample number. It never depends on `batch_size` or
on other records. Matrix products round differently for different numbers of rows, so on a CPU each region is
computed alone, with all its samples, and the result is bit-for-bit reproducible. On a GPU regions are computed in
padded groups of a fixed size. Across devices, number formats, library versions and thread counts the noise is the
same but scores differ in their last digits, which rarely changes a caption.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sgpipe.errors import UserError
from sgpipe.images import ImageError, open_image
from sgpipe.recipe import CaptionConfig
from sgpipe.records import Caption, Record, Scope
from sgpipe.stages.caption.blip import MAX_TOKENS, Blip, check_captioner, for_blip, load_blip
from sgpipe.stages.caption.blip_decoder import BlipDecoder
from sgpipe.stages.caption.decoding import NucleusSampling, beam_captions, sample_captions
from sgpipe.utils.devices import enough_memory, pick_device, pick_dtype

_GPU_GROUP = 8
_REMEDY = "lower caption.samples, or raise caption.resources.gpus so that fewer actors share the GPU"
# Limits the memory for an image with tens of thousands of boxes.
_MAX_PAIRED_BOXES = 1000

Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class Region:
    """A part of an image: `boxes` index `Record.objects`, `window` is xyxy in pixels (None: the whole image)."""

    scope: Scope
    boxes: tuple[int, ...] = ()
    window: Window | None = None


@dataclass(frozen=True)
class _Crop:
    record: Record
    region: Region
    pixels: torch.Tensor


class CaptionStage:
    """Fills `captions` with `samples` nucleus samples (or one beam search result) for every region of the scopes.

    `roots` maps a split to its image folder. Captions are ordered by scope, region and sample; duplicates are kept,
    since their number shows how likely the caption is.
    """

    name = "caption"
    fills: tuple[str, ...] = ("captions", "status", "error")

    def __init__(self, config: CaptionConfig, roots: Mapping[str, Path], seed: int) -> None:
        self.config = for_blip(config)
        self.max_tokens = self.config.max_tokens or MAX_TOKENS
        self.roots = roots
        self.seed = seed
        self.resources = config.resources

    def check(self) -> None:
        """Raises UserError: there is no such captioner, or it is another kind of model."""
        if self.config.captioner is not None:
            check_captioner(self.config.captioner)

    def setup(self) -> None:
        """Load the captioner.

        Raises UserError: it cannot be loaded (see `load_blip`), or `max_tokens` leaves no room for a caption.
        """
        if self.config.captioner is None:
            raise UserError("caption.captioner is not set: expected the folder or hub id of a BLIP captioner")
        torch.set_num_threads(max(1, int(self.resources.cpus)))
        self.device = pick_device(self.config.device, self.config.resources.gpus)
        dtype = pick_dtype(self.config.dtype, self.device)
        self.blip: Blip = load_blip(self.config.captioner, self.config.image_size, self.device, dtype)
        self.decoder = BlipDecoder(self.blip.model)
        self.prompt = self.blip.prompt_ids(self.config.prompt or "")
        self.group = _GPU_GROUP if self.device.type == "cuda" else 1
        self._check_lengths()

    def __call__(self, records: list[Record]) -> list[Record]:
        crops = self._crops(records)
        while batch := list(islice(crops, self.config.batch_size)):
            for first in range(0, len(batch), self.group):
                with enough_memory(self.device, _REMEDY):
                    self._caption(batch[first : first + self.group])
        return records

    def _check_lengths(self) -> None:
        most, least = self.max_tokens, self.config.min_tokens
        positions = self.blip.text_config.max_position_embeddings
        if most > positions:
            raise UserError(f"caption.max_tokens is {most}, but this captioner has only {positions} positions")
        if most <= len(self.prompt) or most < least:
            raise UserError(
                f"caption.max_tokens is {most}: expected at least min_tokens ({least}) and more than the "
                f"{len(self.prompt)} tokens of [DEC] and the prompt, which are included"
            )

    def _crops(self, records: Sequence[Record]) -> Iterator[_Crop]:
        """Yield every region to caption, opening images on demand; unreadable images become error rows."""
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
                yield _Crop(record, region, self.blip.prepare(_crop(image, region)))

    def _caption(self, crops: Sequence[_Crop]) -> None:
        padded = [*crops, *[crops[-1]] * (self.group - len(crops))]
        states = self.blip.encode(torch.stack([crop.pixels for crop in padded]))
        keys = [_noise_key(self.seed, crop) for crop in padded]
        for crop, samples in zip(crops, self._decode(states, keys), strict=False):
            scope, boxes = crop.region.scope, crop.region.boxes
            crop.record.captions += [Caption(self.blip.text(tokens), scope, list(boxes)) for tokens in samples]

    def _decode(self, states: torch.Tensor, keys: list[int]) -> list[list[list[int]]]:
        config = self.config
        if config.decoding == "beam":
            return beam_captions(self.blip.model, states, self.prompt, config.beams, config.min_tokens, self.max_tokens)
        sampling = NucleusSampling(
            config.samples,
            config.top_p,
            config.temperature,
            config.min_tokens,
            self.max_tokens,
            end=self.blip.text_config.sep_token_id,
            repetition_penalty=config.repetition_penalty,
            top_k=config.top_k,
        )
        try:
            return sample_captions(self.decoder, states, self.prompt, keys, sampling)
        except FloatingPointError as reason:
            raise UserError(f"captioner {config.captioner!r}: {reason}") from None


def _crop(image: Image.Image, region: Region) -> Image.Image:
    return image if region.window is None else image.crop(region.window)


def _noise_key(seed: int, crop: _Crop) -> int:
    """63 bits that select the noise of a region, the same in every process."""
    record, region = crop.record, crop.region
    name = [seed, record.dataset, record.split, record.image_id, region.scope, list(region.boxes)]
    digest = hashlib.blake2b(json.dumps(name).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def regions(record: Record, scopes: Sequence[Scope], max_crops: int) -> list[Region]:
    """The regions of each scope, ordered by box index, without crowd boxes.

    Scope "box" has the `max_crops` largest boxes. Scope "pair" has at most `max_crops` unordered pairs of the 1,000
    largest boxes: overlapping pairs by size of the overlap, then the nearest pairs. The region of a pair is the
    smallest rectangle around both boxes. (RLIPv2's dense captions take the first pairs instead.)
    """
    selected: list[Region] = []
    for scope in dict.fromkeys(scopes):
        if scope == "image":
            selected.append(Region("image"))
        else:
            groups = _boxes(record, max_crops) if scope == "box" else _pairs(record, max_crops)
            selected += [Region(scope, boxes, _window(record, boxes)) for boxes in groups]
    return selected


def _boxes(record: Record, max_crops: int) -> list[tuple[int, ...]]:
    return [(index,) for index in _largest(record, max_crops)]


def _pairs(record: Record, max_crops: int) -> list[tuple[int, ...]]:
    single = np.array(_largest(record, _MAX_PAIRED_BOXES), dtype=int)
    boxes = np.array([record.objects[index].bbox for index in single]).reshape(-1, 4)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    first, second = np.triu_indices(len(single), k=1)
    # Per axis: the length of the overlap, or the negative width of the gap.
    shared = np.minimum(high[first], high[second]) - np.maximum(low[first], low[second])
    gap = np.hypot(*np.maximum(-shared, 0).T)
    overlap = np.maximum(shared, 0).prod(axis=1)
    nearest = np.lexsort((second, first, -overlap, gap))[:max_crops]
    return sorted(zip(single[first[nearest]].tolist(), single[second[nearest]].tolist(), strict=True))


def _largest(record: Record, most: int) -> list[int]:
    """The largest non-crowd boxes, ordered by index; of equally large boxes the first is preferred."""

    def area(index: int) -> float:
        _, _, width, height = record.objects[index].bbox
        return width * height

    single = [index for index, box in enumerate(record.objects) if not box.iscrowd]
    return sorted(sorted(single, key=area, reverse=True)[:most])


def _window(record: Record, boxes: Sequence[int]) -> Window:
    """The whole pixels covered by the boxes, clipped to the image; at least one pixel."""
    bounds = [record.objects[index].bbox for index in boxes]
    left = min(max(math.floor(min(x for x, _, _, _ in bounds)), 0), record.width - 1)
    top = min(max(math.floor(min(y for _, y, _, _ in bounds)), 0), record.height - 1)
    right = min(math.ceil(max(x + width for x, _, width, _ in bounds)), record.width)
    bottom = min(math.ceil(max(y + height for _, y, _, height in bounds)), record.height)
    return left, top, max(right, left + 1), max(bottom, top + 1)
