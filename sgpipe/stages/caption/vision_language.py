"""Any image-text-to-text checkpoint of transformers as a captioner.

An image is computed alone, with all its samples, on every device: its vision features and the prompt once, then the
samples together. No tensor's shape depends on another image, so `batch_size` changes nothing on a CPU or a GPU. As with
BLIP, scores differ in their last digits across devices, number formats, library versions and thread counts.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig, GenerationMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from sgpipe.errors import UserError
from sgpipe.recipe import CaptionConfig
from sgpipe.stages.caption.caption_text import one_line
from sgpipe.stages.caption.captioner import CaptionInput, Refused
from sgpipe.stages.caption.checkpoint import UNREADABLE, check_architecture, first_line, options, quiet, read_config
from sgpipe.stages.caption.decoding import NucleusSampling
from sgpipe.stages.caption.image_prompt import EXAMPLE, MISFITS, ImagePrompt
from sgpipe.stages.caption.shared_prefix import SharedPrefix
from sgpipe.stages.caption.weights import check_memory, check_weights
from sgpipe.utils.devices import enough_memory, pick_device, pick_dtype

_REMEDY = (
    "lower caption.samples, caption.max_tokens or caption.image_size, or raise caption.resources.gpus so that fewer "
    "actors share the GPU"
)


class VisionLanguageCaptioner:
    """Captions by a model of transformers' `AutoModelForImageTextToText`, through its processor."""

    def __init__(self, config: CaptionConfig) -> None:
        """`config`: with `prompt` and `max_tokens`, see `families.settings_of`."""
        self.config = config
        self.source = str(config.captioner)
        self.name = f"captioner {self.source!r}"

    def check(self) -> None:
        """Raises UserError: not a model that takes images, or its weights, processor or chat template do not fit."""
        config = read_config(self.source)
        self._check_family(config)
        check_weights(self.source)
        self.prompt = ImagePrompt(self.config)
        self._check_sizes({**config, **(config.get("text_config") or {})})
        self.prompt.check()

    def setup(self) -> None:
        """Load the model and try it. Raises UserError: as `check`; it is too large for the memory, or damaged."""
        config = self.config
        self.device = pick_device(config.device, config.resources.gpus)
        self.dtype = pick_dtype(config.dtype, self.device)
        self.check()
        if (parameters := check_weights(self.source)) is not None:
            check_memory(self.source, parameters, self.dtype, self.device)
        with quiet():
            self.model = self._load_model()
            self.generation = self._generation()
            with enough_memory(self.device, _REMEDY):
                self._try()

    def caption(self, inputs: Iterable[CaptionInput]) -> Iterator[list[str] | Refused]:
        """See `Captioner.caption`."""
        for each in inputs:
            with enough_memory(self.device, _REMEDY), quiet():
                captions = self._caption(each)
            yield captions

    def _caption(self, given: CaptionInput) -> list[str] | Refused:
        try:
            rows = self._decode(self.prompt(given.image), given.key, self.generation)
        except torch.cuda.OutOfMemoryError:
            raise
        except MISFITS as reason:  # such as that of Qwen's processor for a strip of 1 x 201 pixels
            return Refused(f"the captioner cannot process the image: {first_line(reason)}")
        captions = [one_line(self.prompt.decode(row)) for row in rows]
        return [caption for caption in captions if caption] or Refused("the captions are empty")

    def _try(self) -> None:
        """Raises UserError: the model fails on an example."""
        short = copy.deepcopy(self.generation)
        short.update(max_new_tokens=2, min_new_tokens=2)
        try:
            self._decode(self.prompt(EXAMPLE), 0, short)
        except torch.cuda.OutOfMemoryError:
            raise
        except MISFITS as reason:
            raise UserError(f"{self.name} cannot caption an example image: {first_line(reason)}") from None

    @torch.inference_mode()
    def _decode(self, inputs: Any, key: int, generation: GenerationConfig) -> list[list[int]]:
        """The tokens of each caption. Raises UserError: the scores are not finite."""
        inputs = inputs.to(self.device, self.dtype)
        if self.config.decoding == "beam":
            sequences = self.model.generate(**inputs, generation_config=generation)
            prompt = 1 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
            return sequences[:, prompt:].tolist()
        config = self.config
        sampling = NucleusSampling(
            samples=config.samples,
            top_p=config.top_p,
            temperature=config.temperature,
            min_tokens=0,  # which `generation` has, and the end
            max_tokens=generation.max_new_tokens,
            end=-1,
            repetition_penalty=config.repetition_penalty,
            top_k=config.top_k,
        )
        shared = SharedPrefix(key, sampling)
        try:
            return self.model.generate(**inputs, generation_config=generation, custom_generate=shared)
        except FloatingPointError as reason:
            raise UserError(f"{self.name}: {reason}") from None

    def _check_family(self, config: dict[str, Any]) -> None:
        family = str(config.get("model_type"))
        if family in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            check_architecture(self.source, config, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[family])
        elif config.get("auto_map"):
            raise UserError(
                f"{self.name} needs the code in its own repository (trust_remote_code), which is never run; choose a "
                "checkpoint of a family that transformers has"
            )
        else:
            kinds = ", ".join(map(str, config.get("architectures") or ())) or "model of an unknown architecture"
            raise UserError(f"{self.name} cannot caption images: it is a {kinds} (model_type {family!r})")
        if "next_sequence_length" not in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters:
            raise UserError(f"{self.name} needs a newer transformers: pip install --upgrade transformers")

    def _check_sizes(self, text_config: dict[str, Any]) -> None:
        least, most = self.config.min_tokens, self.config.max_tokens or 0
        if most < least:
            raise UserError(f"caption.max_tokens is {most}: expected at least caption.min_tokens ({least})")
        positions, vocabulary = (text_config.get(key) for key in ("max_position_embeddings", "vocab_size"))
        if isinstance(positions, int) and most > positions:
            raise UserError(f"caption.max_tokens is {most}, but this captioner has only {positions} positions")
        # Without its files transformers makes a tokenizer of special tokens only.
        if isinstance(vocabulary, int) and (tokens := len(self.prompt.tokenizer)) < vocabulary / 2:
            raise UserError(
                f"{self.name}: the tokenizer has {tokens} tokens, the model's vocabulary {vocabulary}; tokenizer.json "
                "is missing or belongs to another model"
            )

    def _load_model(self) -> Any:
        try:
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                self.source, dtype=self.dtype, output_loading_info=True, **options(self.source)
            )
        except ImportError as reason:
            raise UserError(f"{self.name} needs a package: {' '.join(str(reason).split())}") from None
        except UNREADABLE as reason:
            raise UserError(f"{self.name}: cannot load its weights: {first_line(reason)}") from None
        model, info = loaded
        if missing := sorted(info["missing_keys"]):
            count = f"{len(missing)} weights are" if len(missing) > 1 else "1 weight is"
            raise UserError(f"{self.name}: {count} missing, such as {missing[0]}")
        torch.nn.Module.to(model, self.device)
        return model.eval()

    def _generation(self) -> GenerationConfig:
        """The checkpoint's tokens and constraints, with the recipe's settings of decoding."""
        config, own = self.config, copy.deepcopy(self.model.generation_config)
        own.update(
            do_sample=False,
            num_beams=config.beams if config.decoding == "beam" else 1,
            num_return_sequences=1,
            max_length=None,
            min_length=None,
            max_new_tokens=config.max_tokens,
            min_new_tokens=config.min_tokens,
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            cache_implementation=None,
            return_dict_in_generate=False,
        )
        return own
