"""Any image-text-to-text checkpoint of transformers as a captioner.

An image is computed alone, with all its samples, on every device: its vision features and the prompt once, then the
samples together. No tensor's shape depends on another image, so `batch_size` changes nothing on a CPU or a GPU. As with
BLIP, scores differ in their last digits across devices, number formats, library versions and thread counts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from sgpipe.errors import UserError
from sgpipe.recipe import CaptionConfig
from sgpipe.stages.caption.caption_text import one_line
from sgpipe.stages.caption.captioner import CaptionInput, Refused
from sgpipe.stages.caption.checkpoint import UNREADABLE, check_architecture, first_line, options, quiet, read_config
from sgpipe.stages.caption.decoding import NucleusSampling
from sgpipe.stages.caption.shared_prefix import SharedPrefix
from sgpipe.stages.caption.weights import check_memory, check_weights
from sgpipe.utils.devices import enough_memory, pick_device, pick_dtype

_REMEDY = (
    "lower caption.samples, caption.max_tokens or caption.image_size, or raise caption.resources.gpus so that fewer "
    "actors share the GPU"
)
_TEST_SIDE = 64  # pixels of the image with which the prompt is tried


class VisionLanguageCaptioner:
    """Captions by a model of transformers' `AutoModelForImageTextToText`, through its processor."""

    def __init__(self, config: CaptionConfig) -> None:
        """`config`: with `prompt` and `max_tokens`, see `families.settings_of`."""
        self.config = config
        self.source = str(config.captioner)

    def check(self) -> None:
        """Raises UserError: not a model that takes images, or its weights, processor or chat template do not fit."""
        config = read_config(self.source)
        self._check_family(config)
        check_weights(self.source)
        self._load_processor()
        self._check_sizes({**config, **(config.get("text_config") or {})})
        self._try_prompt()

    def setup(self) -> None:
        """Load the model. Raises UserError: as `check`; too large for the memory; weights are missing or damaged."""
        config = self.config
        self.device = pick_device(config.device, config.resources.gpus)
        self.dtype = pick_dtype(config.dtype, self.device)
        self.check()
        if (parameters := check_weights(self.source)) is not None:
            check_memory(self.source, parameters, self.dtype, self.device)
        with quiet():
            self.model = self._load_model()
        self.generation = self._generation()

    def caption(self, inputs: Iterable[CaptionInput]) -> Iterator[list[str] | Refused]:
        """See `Captioner.caption`."""
        for each in inputs:
            with enough_memory(self.device, _REMEDY), quiet():
                captions = self._caption(each)
            yield captions

    @torch.inference_mode()
    def _caption(self, given: CaptionInput) -> list[str] | Refused:
        try:
            inputs = self._prepare(given.image)
        except ValueError as reason:  # such as Qwen's of a strip of 1 x 201 pixels
            return Refused(f"the captioner's processor refuses the image: {first_line(reason)}")
        inputs = inputs.to(self.device, self.dtype)
        if self.config.decoding == "beam":
            sequences = self.model.generate(**inputs, generation_config=self.generation)
            prompt = 1 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
            rows = sequences[:, prompt:].tolist()
        else:
            rows = self._sample(inputs, given.key)
        return [one_line(self.processor.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]

    def _sample(self, inputs: Any, key: int) -> list[list[int]]:
        config, most = self.config, self.generation.max_new_tokens
        sampling = NucleusSampling(
            config.samples, config.top_p, config.temperature, 0, most, -1, config.repetition_penalty, config.top_k
        )
        try:
            return self.model.generate(
                **inputs, generation_config=self.generation, custom_generate=SharedPrefix(key, sampling)
            )
        except FloatingPointError as reason:
            raise UserError(f"captioner {self.source!r}: {reason}") from None

    def _prepare(self, image: Image.Image) -> Any:
        """The tensors of the prompt and an image of any size, of which only the pixels are used, not EXIF."""
        plain = Image.fromarray(np.asarray(image.convert("RGB")))
        if self.config.image_size:
            plain.thumbnail((self.config.image_size, self.config.image_size), Image.Resampling.BICUBIC)
        # A chat template writes the start token itself.
        start = getattr(self.processor.tokenizer, "bos_token", None)
        written = {"add_special_tokens": False} if start and self.text.startswith(start) else {}
        return self.processor(text=[self.text], images=[plain], return_tensors="pt", **written)

    def _check_family(self, config: dict[str, Any]) -> None:
        family, name = str(config.get("model_type")), f"captioner {self.source!r}"
        if family in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            check_architecture(self.source, config, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[family])
        elif config.get("auto_map"):
            raise UserError(
                f"{name} needs the code in its own repository (trust_remote_code), which is never run; choose a "
                "checkpoint of a family that transformers has"
            )
        else:
            kinds = ", ".join(map(str, config.get("architectures") or ())) or "model of an unknown architecture"
            raise UserError(f"{name} cannot caption images: it is a {kinds} (model_type {family!r})")

    def _check_sizes(self, text_config: dict[str, Any]) -> None:
        least, most = self.config.min_tokens, self.config.max_tokens or 0
        if most < least:
            raise UserError(f"caption.max_tokens is {most}: expected at least caption.min_tokens ({least})")
        positions, vocabulary = (text_config.get(key) for key in ("max_position_embeddings", "vocab_size"))
        if isinstance(positions, int) and most > positions:
            raise UserError(f"caption.max_tokens is {most}, but this captioner has only {positions} positions")
        # Without its files transformers makes a tokenizer of special tokens only.
        if isinstance(vocabulary, int) and (tokens := len(self.processor.tokenizer)) < vocabulary / 2:
            raise UserError(
                f"captioner {self.source!r}: the tokenizer has {tokens} tokens, the model's vocabulary {vocabulary}; "
                "tokenizer.json is missing or belongs to another model"
            )

    def _load_processor(self) -> None:
        """Load the processor and write the prompt."""
        name = f"captioner {self.source!r}"
        try:
            with quiet():
                self.processor: Any = AutoProcessor.from_pretrained(self.source, **options(self.source))
        except ImportError as reason:
            raise UserError(f"{name}: its processor needs another package: {_joined(reason)}") from None
        except UNREADABLE as reason:
            raise UserError(f"{name}: cannot load its processor: {first_line(reason)}") from None
        missing = [part for part in ("image_processor", "tokenizer") if getattr(self.processor, part, None) is None]
        if missing:
            raise UserError(
                f"{name} has no processor for images (no {' and no '.join(missing)}): processor_config.json or "
                "preprocessor_config.json is missing"
            )
        self.text = self._prompt()

    def _prompt(self) -> str:
        """The prompt as the model reads it: as it is, or in the chat template."""
        name = f"captioner {self.source!r}"
        prompt, system = self.config.prompt or "", self.config.system
        if getattr(self.processor, "chat_template", None) is None:
            if system is not None:
                raise UserError(f"{name}: caption.system is set, but its processor has no chat template to put it in")
            return prompt
        asked: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": asked}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        try:
            return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except (TemplateError, *UNREADABLE) as reason:
            raise UserError(f"{name}: its chat template fails: {first_line(reason)}") from None

    def _try_prompt(self) -> None:
        """Prepare a grey image. Raises UserError: the prompt has no place for it, or the template has none for both."""
        name = f"captioner {self.source!r}"
        template = getattr(self.processor, "chat_template", None) is not None
        where = (
            "its chat template has no place for the image"
            if template
            else "its processor has no chat template, and caption.prompt has no place for the image"
        )
        image = getattr(self.processor, "image_token", None)
        remedy = "" if template else "; write the prompt as the model expects it" + (f", with {image}" if image else "")
        try:
            with quiet():
                inputs = self._prepare(Image.new("RGB", (_TEST_SIDE, _TEST_SIDE), "grey"))
        except UNREADABLE as reason:
            why = where + remedy if image and str(image) not in self.text else first_line(reason)
            raise UserError(f"{name}: {why}") from None
        number = getattr(self.processor, "image_token_id", None)
        if number is not None and number not in inputs["input_ids"]:
            raise UserError(f"{name}: {where}{remedy}")
        if template and (self.config.prompt or "").strip() not in self.text:
            raise UserError(f"{name}: its chat template leaves out caption.prompt")

    def _load_model(self) -> Any:
        name = f"captioner {self.source!r}"
        try:
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                self.source, dtype=self.dtype, output_loading_info=True, **options(self.source)
            )
        except ImportError as reason:
            raise UserError(f"{name} needs another package: {_joined(reason)}") from None
        except UNREADABLE as reason:
            raise UserError(f"{name}: cannot load its weights: {first_line(reason)}") from None
        model, info = loaded
        if missing := sorted(info["missing_keys"]):
            count = f"{len(missing)} weights are" if len(missing) > 1 else "1 weight is"
            raise UserError(f"{name}: {count} missing, such as {missing[0]}")
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


def _joined(reason: BaseException) -> str:
    return " ".join(str(reason).split())
