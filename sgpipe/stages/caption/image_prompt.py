"""What a model of transformers reads: an image and the prompt, by the processor and chat template of its checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoProcessor

from sgpipe.errors import UserError
from sgpipe.recipe import CaptionConfig
from sgpipe.stages.caption.checkpoint import UNREADABLE, first_line, options, quiet

# What processors, templates and models raise for inputs or settings that they do not fit.
MISFITS = (*UNREADABLE, AttributeError, IndexError)
EXAMPLE = Image.new("RGB", (64, 64), "grey")


class ImagePrompt:
    """The prompt of a recipe, ready for images."""

    def __init__(self, config: CaptionConfig) -> None:
        """
        Raises UserError: the processor is missing, damaged or needs a package; its chat template fails, or leaves out
        the prompt or the system message.
        """
        self._name = f"captioner {str(config.captioner)!r}"
        self._size = config.image_size
        self.processor: Any = self._load(str(config.captioner))
        self.tokenizer: Any = self.processor.tokenizer
        self._template = getattr(self.processor, "chat_template", None) is not None
        self.text = self._write(config.prompt or "", config.system)

    def __call__(self, image: Image.Image) -> Any:
        """The tensors of the prompt and an image of any size, of which only the pixels are used, not EXIF.

        Raises ValueError: the processor refuses the image.
        """
        plain = Image.fromarray(np.asarray(image.convert("RGB")))
        if self._size:
            plain.thumbnail((self._size, self._size), Image.Resampling.BICUBIC)
        # A chat template writes the start token itself.
        start = getattr(self.tokenizer, "bos_token", None)
        written = {"add_special_tokens": False} if start and self.text.startswith(start) else {}
        return self.processor(text=[self.text], images=[plain], return_tensors="pt", **written)

    def check(self) -> None:
        """Prepare an example. Raises UserError: the prompt has no place for an image."""
        image = getattr(self.processor, "image_token", None)
        where = "its chat template has no place for the image"
        if not self._template:
            mark = f", with {image}" if image else ""
            where = (
                "its processor has no chat template, and caption.prompt has no place for the image; write the prompt "
                f"as the model expects it{mark}"
            )
        try:
            with quiet():
                inputs = self(EXAMPLE)
        except MISFITS as reason:
            raise UserError(
                f"{self._name}: {where if image and str(image) not in self.text else first_line(reason)}"
            ) from None
        number = getattr(self.processor, "image_token_id", None)
        if number is not None and number not in inputs["input_ids"]:
            raise UserError(f"{self._name}: {where}")

    def decode(self, tokens: list[int]) -> str:
        """The text of generated tokens, without special ones."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _load(self, source: str) -> Any:
        try:
            with quiet():
                processor = AutoProcessor.from_pretrained(source, **options(source))
        except ImportError as reason:
            raise UserError(f"{self._name}: its processor needs a package: {' '.join(str(reason).split())}") from None
        except MISFITS as reason:
            raise UserError(f"{self._name}: cannot load its processor: {first_line(reason)}") from None
        missing = [part for part in ("image_processor", "tokenizer") if getattr(processor, part, None) is None]
        if missing:
            raise UserError(
                f"{self._name} has no processor for images (no {' and no '.join(missing)}): processor_config.json or "
                "preprocessor_config.json is missing"
            )
        return processor

    def _write(self, prompt: str, system: str | None) -> str:
        """The prompt as the model reads it: as it is, or in the chat template."""
        if not self._template:
            if system is not None:
                raise UserError(f"{self._name}: caption.system is set, but it has no chat template to put it in")
            return prompt
        asked: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": asked}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        try:
            text = str(self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except (TemplateError, *MISFITS) as reason:
            raise UserError(f"{self._name}: its chat template fails: {first_line(reason)}") from None
        for setting, value in (("caption.prompt", prompt), ("caption.system", system or "")):
            if value.strip() not in text:
                raise UserError(f"{self._name}: its chat template leaves out {setting}")
        return text
