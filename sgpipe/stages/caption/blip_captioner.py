"""A BLIP checkpoint as a captioner.

Matrix products round differently for different numbers of rows, so on a CPU each image is computed alone, with all its
samples, and the result is bit-for-bit reproducible. On a GPU images are computed in padded groups of a fixed size,
halved when the memory is full. Across sizes of groups, devices, number formats, library versions and thread counts the
noise is the same but scores differ in their last digits, which rarely changes a caption.
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
from sgpipe.utils.devices import GPU_THREADS, GpuMemory, pick_device, pick_dtype
from sgpipe.utils.prefetch import prefetch

_GPU_GROUP = 8
_REMEDY = "lower caption.samples, or raise caption.resources.gpus so that fewer actors share the GPU"

_Prepared = tuple[torch.Tensor, int]  # pixels, as by `BlipCaptioner._prepare`, and key of an image


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
        on_gpu = self.device.type == "cuda"
        # transformers' beam search is not known to be safe for threads
        self.gpu_threads = (GPU_THREADS if config.decoding == "nucleus" else 1) if on_gpu else 0
        self.memory = GpuMemory(self.device, _REMEDY, max(self.gpu_threads, 1), _GPU_GROUP if on_gpu else 1)
        self._check_lengths()

    def caption(self, inputs: Iterable[CaptionInput]) -> Iterator[list[str]]:
        """See `Captioner.caption`."""
        threads = image_threads(self.config.resources, elsewhere=self.device.type != "cpu")
        with (
            prefetch(self._prepare, inputs, threads, self.config.batch_size + 2 * threads) as prepared,
            prefetch(self._compute, self._groups(prepared), self.gpu_threads, self.gpu_threads + 1) as computed,
        ):
            for captions in computed:
                yield from captions

    def _prepare(self, given: CaptionInput) -> _Prepared:
        """What is copied to the device: for a GPU bytes, which it normalises, else normalised pixels."""
        if self.device.type == "cpu":
            return self.blip.prepare(given.image), given.key
        pixels = self.blip.prepare.resize(given.image)
        return pixels.pin_memory() if self.device.type == "cuda" else pixels, given.key

    def _groups(self, prepared: Iterator[_Prepared]) -> Iterator[list[_Prepared]]:
        while group := list(islice(prepared, min(self.memory.batch_size, self.config.batch_size))):
            yield group

    def _compute(self, group: list[_Prepared]) -> list[list[str]]:
        """The captions of a group, which is padded to the size of all groups."""
        padded = [*group, *[group[-1]] * (self.memory.batch_size - len(group))]
        return self.memory.compute(self._caption, padded)[: len(group)]

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
        pixels = self.blip.to_device([pixels for pixels, _ in group])
        decoded = self._decode(self.blip.encode(pixels), [key for _, key in group])
        return [[self.blip.text(tokens) for tokens in samples] for samples in decoded]

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
