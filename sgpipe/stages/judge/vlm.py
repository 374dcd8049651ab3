"""A vision-language model of transformers as a judge: the probability of "yes" as the first token of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sgpipe.errors import UserError
from sgpipe.records import Box, Relation
from sgpipe.stages.checkpoint import UNREADABLE, first_line, load_weights, options, quiet, read_config
from sgpipe.stages.judge.judge import NO_AREA, Unjudged
from sgpipe.stages.judge.marks import marked_image
from sgpipe.stages.judge.questions import LONGEST_SIDE, answer_texts, ask_about, mean_of_orders
from sgpipe.utils.devices import pick_device, pick_dtype
from sgpipe.utils.gpu_memory import enough_memory

_REMEDY = "use a smaller model"
_MISFITS = (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError)  # of an image and a model
_EXAMPLE = Image.new("RGB", (64, 64), "white")


class VlmJudge:
    """Asks a model whether a relation holds, one question at a time, so that no answer depends on another question."""

    def __init__(self, model: str, device: str = "auto", dtype: str = "auto", gpus: float = 0) -> None:
        """
        Args:
            model: hub id or folder of an image-text-to-text model with a chat template.
            gpus: how many were asked for.
        """
        self.model = model
        self._device_name, self._dtype_name, self._gpus = device, dtype, gpus

    def check(self) -> None:
        """Raises UserError: there is no such model, or it does not read images and text."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

        kind = read_config(self.model, "judge").get("model_type")
        if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise UserError(f"{self.model} cannot be asked about images: it is a {kind or 'model without a type'}")

    def load(self) -> None:
        """Raises UserError: as `check`, the weights are damaged, it has no chat template, or no GPU is there."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.check()
        self._device = pick_device(self._device_name, self._gpus)
        dtype = pick_dtype(self._dtype_name, self._device)
        try:
            with quiet():
                self._processor: Any = AutoProcessor.from_pretrained(self.model, **options(self.model))
        except (ImportError, *UNREADABLE) as error:
            raise UserError(f"judge {self.model} cannot be loaded ({first_line(error)})") from None
        network = load_weights(AutoModelForImageTextToText, self.model, "judge", dtype=dtype)
        if not getattr(self._processor, "chat_template", None):
            raise UserError(f"judge {self.model} has no chat template, so it cannot be asked")
        self._network: Any = network.eval().to(self._device)
        self._yes, self._no = _answer_tokens(self._processor.tokenizer, self.model)
        if isinstance(failed := self._ask(_EXAMPLE, ["Is it white?"]), Unjudged):
            raise UserError(f"judge {self.model} cannot be asked about an example image: {failed.reason}")

    def probabilities(
        self, image: Image.Image, objects: Sequence[Box], relations: Sequence[Relation]
    ) -> list[float | Unjudged]:
        """See `Judge`."""
        found: list[float | Unjudged] = []
        with enough_memory(self._device, _REMEDY):
            for relation in relations:
                marked = marked_image(image, objects, relation, LONGEST_SIDE)
                found.append(NO_AREA if marked is None else self._ask(marked, ask_about(objects, relation)))
        return found

    def _ask(self, image: Image.Image, questions: Sequence[str]) -> float | Unjudged:
        """The mean over the questions."""
        try:
            return mean_of_orders(self._share_of_yes(image, question) for question in questions)
        except torch.cuda.OutOfMemoryError:
            raise
        except _MISFITS as reason:  # such as that of Qwen's processor for a strip of 1 x 201 pixels
            return Unjudged(f"the judge cannot process the image: {first_line(reason)}")

    @torch.inference_mode()
    def _share_of_yes(self, image: Image.Image, question: str) -> float:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self._processor(images=[image], text=[prompt], return_tensors="pt").to(self._device)
        for name, value in inputs.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                inputs[name] = value.to(self._network.dtype)
        logits = self._network(**inputs).logits[0, -1].double()
        yes, no = logits[self._yes].logsumexp(0), logits[self._no].logsumexp(0)
        share = float((yes - no).sigmoid())
        if share != share:
            raise UserError(f"judge {self.model} returns NaN: its weights are damaged")
        return share


def _answer_tokens(tokenizer: Any, model: str) -> tuple[Tensor, Tensor]:
    """The first tokens of the answers "yes" and "no", in any spelling.

    Raises UserError: the tokenizer does not tell them apart.
    """
    yes, no = ({_first_token(tokenizer, text, word) for text in answer_texts(word)} - {None} for word in ("yes", "no"))
    if not (yes - no and no - yes):
        raise UserError(f"judge {model}: its tokenizer does not tell the answers yes and no apart")
    return torch.tensor(sorted(yes - no)), torch.tensor(sorted(no - yes))


def _first_token(tokenizer: Any, text: str, word: str) -> int | None:
    """The token with which a text begins to spell a word; None if one before it is more than white space."""
    for token in tokenizer.encode(text, add_special_tokens=False):
        said = tokenizer.decode([token]).strip().lower()
        if said:
            return int(token) if word.startswith(said) else None
    return None
