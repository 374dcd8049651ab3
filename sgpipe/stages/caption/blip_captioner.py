"""A BLIP checkpoint as a captioner.

Matrix products round differently for different numbers of rows, so on a CPU each image is computed alone, with all its
samples, and the result is bit-for-bit reproducible. On a GPU images are computed in padded groups of a fixed size.
Across devices, number formats, library versions and thread counts the noise is the same but scores differ in their last
digits, which rarely changes a caption.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch

from sgpipe.errors import UserError
from sgpipe.recipe import CaptionConfig
from sgpipe.stages.base import image_threads
from sgpipe.stages.caption.blip import Blip, check_captioner, load_blip
from sgpipe.stages.caption.blip_decoder import BlipDecoder
from sgpipe.stages.caption.captioner import MAX_TOKENS, CaptionInput, for_blip
from sgpipe.stages.caption.decoding import NucleusSampling, beam_captions, sample_captions
from sgpipe.utils.devices import enough_memory, pick_device, pick_dtype
from sgpipe.utils.prefetch import prefetch

_GPU_GROUP = 8
_REMEDY = "lower caption.samples, or raise caption.resources.gpus so that fewer actors share the GPU"

_Prepared = tuple[torch.Tensor, int]  # pixels and key of an image


class BlipCaptioner:
    """Captions by BLIP, with the decoder of `blip_decoder`."""

    def __init__(self, config: CaptionConfig) -> None:
        self.config = for_blip(config)
        self.source = str(config.captioner)
        self.max_tokens = self.config.max_tokens or MAX_TOKENS

    def check(self) -> None:
        """Raises UserError: there is no such captioner, it is another kind of model, or `caption.system` is set."""
        if self.config.system is not None:
            raise UserError("caption.system is set, but BLIP is no chat model: set caption.prompt, or omit both")
        check_captioner(self.source)

    def setup(self) -> None:
        """Raises UserError: it cannot be loaded (see `load_blip`), or `max_tokens` leaves no room for a caption."""
        config = self.config
        self.device = pick_device(config.device, config.resources.gpus)
        dtype = pick_dtype(config.dtype, self.device)
        self.blip: Blip = load_blip(self.source, config.image_size, self.device, dtype)
        self.decoder = BlipDecoder(self.blip.model)
        self.compiled = [self.decoder.compile()] if config.compile and self.device.type == "cuda" else []
        self.prompt = self.blip.prompt_ids(config.prompt or "")
        self.group = _GPU_GROUP if self.device.type == "cuda" else 1
        self._check_lengths()

    def caption(self, inputs: Iterable[CaptionInput]) -> Iterator[list[str]]:
        """See `Captioner.caption`."""
        threads = image_threads(self.config.resources, elsewhere=self.device.type != "cpu")
        with prefetch(self._prepare, inputs, threads, self.config.batch_size + 2 * threads) as prepared:
            while batch := list(islice(prepared, self.config.batch_size)):
                for first in range(0, len(batch), self.group):
                    with enough_memory(self.device, _REMEDY):
                        captions = self._caption(batch[first : first + self.group])
                    yield from captions

    def _prepare(self, given: CaptionInput) -> _Prepared:
        return self.blip.prepare(given.image), given.key

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

    def _caption(self, group: Sequence[_Prepared]) -> list[list[str]]:
        padded = [*group, *[group[-1]] * (self.group - len(group))]
        states = self.blip.encode(torch.stack([pixels for pixels, _ in padded]))
        decoded = self._decode(states, [key for _, key in padded])
        return [[self.blip.text(tokens) for tokens in samples] for samples in decoded[: len(group)]]

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
