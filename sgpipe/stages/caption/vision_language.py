"""Any image-text-to-text checkpoint of transformers as a captioner, or asked what an endpoint can
be asked.

An image is computed alone on every device: its vision features and the prompt once, then all
samples together. As with BLIP, scores differ in their last digits across devices, number formats,
library versions and thread counts.
"""

import copy
import inspect
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    GenerationMixin,
)
from transformers.generation import utils
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from sgpipe.errors import ComputationError, UserError, first_line
from sgpipe.recipe import CaptionConfig
from sgpipe.stages import checkpoint
from sgpipe.stages.base import image_threads
from sgpipe.stages.caption.captioner import EXAMPLE, CaptionInput, ChatCaptioner
from sgpipe.stages.caption.nucleus import check_finite, draw, process
from sgpipe.stages.caption.shared_prefix import (
    ROWS,
    SharedPrompts,
    begin,
    end,
    full_prompts,
    share_prompts,
)
from sgpipe.stages.failures import is_gpu_failure
from sgpipe.stages.served.chat import ChatRequest, Choice, Refusal
from sgpipe.utils.devices import pick_device, pick_dtype
from sgpipe.utils.gpu import GpuMemory, enough_memory
from sgpipe.utils.prefetch import prefetch

_REMEDY = (
    "use a smaller model or fewer samples, lower caption.max_tokens or caption.image_size, or raise"
    " resources.gpus so that fewer actors share the GPU"
)
_READING = threading.Lock()  # tokenizers are not safe for threads
_VARIANTS = ("{}", " {}", "\n{}", '"{}', "**{}")  # in which an answer may begin
# of log-odds, by rounding
_MOST_DIFFERENCE = 0.01
_MOST_DIFFERENCE_IN_HALF = 0.5

# Inputs that only the prefix needs; text that follows must not repeat them.
_PREFIX_ONLY = (
    *getattr(utils, "MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL", ("pixel_values",)),
    "inputs_embeds",
)


class VisionLanguageCaptioner(ChatCaptioner):
    """Captions by a model of transformers' `AutoModelForImageTextToText`, through its processor."""

    def __init__(self, config: CaptionConfig) -> None:
        """`config`: see `captioner.settings_of`."""
        super().__init__(config)
        self.source = str(config.captioner)

    @property
    def name(self) -> str:
        """What messages call the model; any but a captioner needs a chat template."""
        return f"{self.role} {self.source!r}"

    def check(self, example: ChatRequest | None = None) -> None:
        """Raise UserError if this is not a model that takes images, or its processor or chat
        template do not fit.
        """
        config = checkpoint.read_config(self.source, self.role)
        self._check_family(config)
        self._load_prompt()
        if self.role != "captioner" and not self.is_chat:
            raise UserError(f"{self.name} has no chat template, so it cannot be asked")
        text = {**config, **(config.get("text_config") or {})}
        positions = text.get("max_position_embeddings")
        self.positions = positions if isinstance(positions, int) else None
        self._check_lengths(self.positions)
        vocabulary = text.get("vocab_size")
        if isinstance(vocabulary, int):
            checkpoint.check_vocabulary(self.name, len(self.tokenizer), (vocabulary / 2, math.inf))
        if self.role == "scorer":
            self.yes_and_no = self._find_yes_and_no()

    def _check_family(self, config: dict[str, Any]) -> None:
        """Check that transformers can load the model.

        Raises:
            UserError: transformers cannot load such a model for images and text.
        """
        family = str(config.get("model_type"))
        if family not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            code = "; code in its own repository is never run" if config.get("auto_map") else ""
            raise UserError(
                f"{self.name} does not read images and text: its model_type is {family!r}{code}"
            )
        architecture = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[family]
        checkpoint.check_architecture(self.name, config, architecture)
        prepare = inspect.signature(GenerationMixin.prepare_inputs_for_generation)
        if "next_sequence_length" not in prepare.parameters:
            raise UserError(
                f"{self.name} needs a newer transformers: pip install --upgrade transformers"
            )

    def _check_lengths(self, positions: int | None) -> None:
        """Check that the longest answer fits the model.

        Raises:
            UserError: the model has fewer positions than the longest answer has tokens.
        """
        min_tokens = self.config.min_tokens
        max_tokens = self.config.max_tokens or 0
        is_too_long = positions is not None and max_tokens > positions
        if max_tokens < min_tokens or is_too_long:
            raise UserError(
                f"caption.max_tokens is {max_tokens}: expected at least caption.min_tokens"
                f" ({min_tokens}) and at most the positions of {self.name}"
                f" ({positions or 'unknown'})"
            )

    def setup(self) -> None:
        """Load the model and try it.

        Raises:
            UserError: like `check`, or if it is damaged or too large for the memory.
        """
        config = self.config
        self.device = pick_device(config.device, config.resources.gpus)
        self.dtype = pick_dtype(config.dtype, self.device)
        self.memory = GpuMemory(self.device, _REMEDY, threads=1, batch_size=ROWS)
        self.check()
        with enough_memory(self.device, _REMEDY):
            model = checkpoint.load_weights(
                AutoModelForImageTextToText, self.source, self.role, dtype=self.dtype
            )
            self.model = torch.nn.Module.to(model, self.device).eval()
            self.generation = copy.deepcopy(self.model.generation_config)
            self.generation.update(
                max_length=None,
                min_length=None,
                temperature=None,
                top_p=None,
                top_k=None,
                cache_implementation=None,
                do_sample=False,
                repetition_penalty=1.0,
                return_dict_in_generate=False,
                max_new_tokens=config.max_tokens,
                min_new_tokens=config.min_tokens,
                num_beams=config.beams if config.decoding == "beam" else 1,
                num_return_sequences=1,
            )
            short = copy.deepcopy(self.generation)
            short.update(max_new_tokens=2, min_new_tokens=2)
            with checkpoint.loading(f"{self.name} cannot process an example image"):
                self._decode(self.inputs(EXAMPLE), 0, short)

    def _load_prompt(self) -> None:
        """Load the processor, and check what it makes of the prompt and an image.

        Raises:
            UserError: the processor or template is missing or damaged, or leaves out the prompt or
                the image.
        """
        self.processor: Any = checkpoint.load_part(AutoProcessor, self.source, self.role)
        if not (
            hasattr(self.processor, "image_processor") and hasattr(self.processor, "tokenizer")
        ):
            raise UserError(
                f"{self.name} has no processor for images and text: preprocessor_config.json is"
                " missing"
            )
        self.tokenizer: Any = self.processor.tokenizer
        self.is_chat = getattr(self.processor, "chat_template", None) is not None
        with checkpoint.loading(f"{self.name}: its chat template fails"):
            self.text = self.chat(self.request(CaptionInput(EXAMPLE, key=0)))
        for setting, value in (
            ("caption.prompt", self.config.prompt),
            ("caption.system", self.config.system),
        ):
            if (value or "").strip() not in self.text:
                raise UserError(
                    f"{self.name}: its chat template, if it has one, leaves out {setting}"
                )
        with checkpoint.loading(self.name):
            tokens = self.inputs(EXAMPLE)["input_ids"]
        if getattr(self.processor, "image_token_id", tokens[0, 0]) not in tokens:
            image = getattr(self.processor, "image_token", "an image token")
            where = "its chat template, or else caption.prompt"
            raise UserError(f"{self.name}: {where}, has no place for the image: {image}")

    def inputs(self, image: Image.Image, text: str | None = None) -> Any:
        """Return the tensors of the prompt and an image of any size, of which only the pixels are
        used, not EXIF.

        Raises one of `MISFITS` if the processor refuses the image.

        Args:
            text: of another prompt, by `chat`.
        """
        plain = Image.fromarray(np.asarray(image.convert("RGB")))
        size = self.config.image_size
        if size:
            plain.thumbnail((size, size), Image.Resampling.BICUBIC)
        text = text or self.text
        written = self._special_tokens(text)
        with _READING:
            return self.processor(text=[text], images=[plain], return_tensors="pt", **written)

    def _special_tokens(self, text: str) -> dict[str, bool]:
        """Return the setting of a tokenizer for a text whose template may write the start token
        itself.
        """
        start = getattr(self.tokenizer, "bos_token", None)
        return {"add_special_tokens": False} if start and text.startswith(start) else {}

    def decode(self, tokens: list[int]) -> str:
        with _READING:
            return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def chat(self, request: ChatRequest) -> str:
        """Return the messages in the chat template; the text alone, if there is none."""
        if not self.is_chat:
            return request.text
        written = []
        for message in request.messages:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            parts = [{"type": "image"} if part["type"] == "image_url" else part for part in parts]
            written.append({"role": message["role"], "content": parts})
        return str(
            self.processor.apply_chat_template(written, add_generation_prompt=True, tokenize=False)
        )

    def _find_yes_and_no(self) -> tuple[Tensor, Tensor]:
        """Return the first tokens of these words, in any spelling.

        Raises:
            UserError: they cannot be told apart.
        """
        yes = self._first_tokens("yes")
        no = self._first_tokens("no")
        if not (yes - no and no - yes):
            raise UserError(
                f"{self.name}: its tokenizer does not tell the answers yes and no apart"
            )
        return torch.tensor(sorted(yes - no)), torch.tensor(sorted(no - yes))

    def _first_tokens(self, word: str) -> set[int]:
        """Return the tokens that an answer of this word may begin with."""
        first = set[int]()
        for spelling in (word, word.capitalize(), word.upper()):
            for variant in _VARIANTS:
                tokens = self.tokenizer.encode(variant.format(spelling), add_special_tokens=False)
                for token in tokens:
                    text = self.tokenizer.decode([token]).strip().lower()
                    if not text:  # white space
                        continue
                    if word.startswith(text):
                        first.add(int(token))
                    break
        return first

    def ask_all(self, requests: Iterable[ChatRequest]) -> Iterator[list[Choice] | Refusal]:
        """See `ChatEndpoint.ask_all`. The sampling is that of `config`; a schema is not enforced.

        Logarithms are those of "yes" and "no". A thread prepares the next request meanwhile.
        """
        threads = min(image_threads(self.config.resources, elsewhere=self.device.type != "cpu"), 1)
        read = partial(self._attempt, lambda request: (request, self._read(request)))
        with prefetch(read, requests, threads, 2) as prepared:
            for each in prepared:
                yield each if isinstance(each, Refusal) else self._attempt(self._answer, each)

    def _attempt(self, function: Callable[[Any], Any], item: Any) -> Any:
        try:
            with enough_memory(self.device, _REMEDY):
                return function(item)
        except checkpoint.MISFITS as reason:  # as of Qwen's processor for a strip of 1 x 201 pixels
            if is_gpu_failure(reason):  # then no image can be processed
                raise
            return Refusal(f"the {self.role} cannot process the image: {first_line(reason)}")

    def _read(self, request: ChatRequest) -> Any:
        assert isinstance(request.image, Image.Image)
        return self.inputs(request.image, self.chat(request))

    @torch.inference_mode()
    def _answer(self, given: tuple[ChatRequest, Any]) -> list[Choice]:
        request, inputs = given
        if request.logprobs:
            logits = self.model(**inputs.to(self.device, self.dtype)).logits[:, -1]
            [shares] = self._yes_and_no(logits)
            return [Choice("", None, shares)]
        texts = self._decode(inputs, request.seed, self.generation, request.n)
        for number, text in enumerate(texts):
            if request.check and (wrong := request.check(text)):
                more = request.once_more(number, text, wrong)
                [texts[number]] = self._decode(
                    self._read(more), more.seed ^ more.first, self.generation, 1
                )
        return [Choice(text) for text in texts]

    def ask_together(self, requests: Sequence[ChatRequest]) -> Iterator[list[Choice] | Refusal]:
        """See `ChatCaptioner.ask_together`; for requests of `logprobs`."""
        answers = self._attempt(self._answer_together, requests)
        yield from [answers] * len(requests) if isinstance(answers, Refusal) else answers

    def check_together(self, requests: Sequence[ChatRequest]) -> None:
        """Check that questions get the same answers together as alone.

        Raises:
            UserError: `ask_together` gives other answers than `ask_all`.
        """
        in_full = self.dtype == torch.float32
        difference = _MOST_DIFFERENCE if in_full else _MOST_DIFFERENCE_IN_HALF
        with checkpoint.loading(f"{self.name} needs tag.questions: each"):
            together = self._answer_together(requests)
            for request, answer in zip(requests, together, strict=True):
                alone = self._answer((request, self._read(request)))
                if abs(_log_odds(answer) - _log_odds(alone)) > difference:
                    raise ValueError("it answers several questions otherwise than one")

    @torch.inference_mode()
    def _answer_together(self, requests: Sequence[ChatRequest]) -> list[list[Choice]]:
        prompts = self._read_together(requests)
        begun = begin(self.model, prompts.prefix)

        def answer(endings: Sequence[list[int]]) -> list[list[Choice]]:
            logits = end(self.model, begun, endings)
            return [[Choice("", None, shares)] for shares in self._yes_and_no(logits)]

        answers = []
        rows = self.memory.batch_size
        for start in range(0, len(requests), rows):
            answers += self.memory.compute(answer, prompts.endings[start : start + rows])
        return answers

    def _read_together(self, requests: Sequence[ChatRequest]) -> SharedPrompts:
        """Prepare questions that share an image.

        Raises:
            ValueError: a prompt is too long for the model, or cannot be shared.
        """
        texts = [self.chat(request) for request in requests]
        inputs = self._read(requests[0]).to(self.device, self.dtype)
        with _READING:
            read = self.tokenizer(texts, **self._special_tokens(texts[0]))["input_ids"]
        prompts = full_prompts(inputs["input_ids"][0].tolist(), read)
        longest = max(map(len, prompts))
        if self.positions is not None and longest > self.positions:
            raise ValueError(f"a prompt of {longest} tokens is longer than its {self.positions}")
        return share_prompts(inputs, prompts)

    def _yes_and_no(self, logits: Tensor) -> list[dict[str, float]]:
        """Return the log-probabilities that an answer begins with one of these words rather than
        the other.

        Args:
            logits: of the first token of each answer, `[answers, vocabulary]`.
        """
        scores = logits.double()
        sums = [scores[:, tokens].logsumexp(1) for tokens in self.yes_and_no]
        shares = torch.stack(sums, 1).log_softmax(1)
        if shares.isnan().any():
            raise ComputationError(f"{self.name} returns NaN: its weights are damaged")
        return [dict(zip(("yes", "no"), row, strict=True)) for row in shares.tolist()]

    @torch.inference_mode()
    def _decode(
        self, inputs: Any, key: int, generation: GenerationConfig, samples: int = 0
    ) -> list[str]:
        """Return the text of each sample, without special tokens.

        Raises:
            ComputationError: the scores are not finite.
        """
        inputs = inputs.to(self.device, self.dtype)
        if self.config.decoding == "beam":
            sequences = self.model.generate(**inputs, generation_config=generation)
            prompt = 1 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
            rows = sequences[:, prompt:].tolist()
        else:
            sample = partial(sample_nucleus, key, self.config, samples or self.config.samples)
            rows = self.model.generate(
                **inputs, generation_config=generation, custom_generate=sample
            )
        return [self.decode(row) for row in rows]


def _log_odds(answer: Sequence[Choice]) -> float:
    shares = answer[0].logprobs or {}
    return shares["yes"] - shares["no"]


def sample_nucleus(
    key: int,
    sampling: CaptionConfig,
    samples: int,
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    **inputs: Any,
) -> list[list[int]]:
    """Return the tokens of nucleus samples of one image, without the end token; for
    `generate(custom_generate=...)`.

    The end and both lengths are those of `generation_config`; the repetition penalty counts the
    tokens of the caption, not those of the prompt.

    Args:
        key: 63 bits that select the noise of the image.
        input_ids: [1, prompt].

    Raises:
        ComputationError: scores are not finite.
    """
    prompt = input_ids.shape[1]
    max_new_tokens = generation_config.max_new_tokens
    scores, inputs = _forward(model, input_ids, inputs, is_first_iteration=True)
    has_encoder = model.config.is_encoder_decoder
    input_ids, inputs = model._expand_inputs_for_generation(
        samples, has_encoder, input_ids, **inputs
    )
    if samples > 1:
        cache: Any = inputs.get("cache", inputs.get("past_key_values"))
        cache.batch_repeat_interleave(samples)
    scores = scores.expand(samples, -1)
    ends = generation_config.eos_token_id
    ends = torch.as_tensor(
        [] if ends is None else ends, device=scores.device, dtype=input_ids.dtype
    ).reshape(-1)
    numbers = torch.arange(samples, device=scores.device)
    keys = torch.full_like(numbers, key)
    lengths = torch.full_like(numbers, max_new_tokens)
    for step in range(max_new_tokens):
        scores = process(logits_processor(input_ids, scores), input_ids[:, prompt:], sampling)
        tokens, finite, _ = draw(scores, sampling.top_p, keys, numbers, step)
        check_finite(bool(finite), sampling)
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
        ended = torch.isin(tokens, ends) & (lengths > step)
        lengths = lengths.where(~ended, step)
        if step + 1 == max_new_tokens or bool((lengths <= step).all()):
            break
        scores, inputs = _forward(model, input_ids, inputs, next_sequence_length=1)
    rows = zip(input_ids[:, prompt:].tolist(), lengths.tolist(), strict=True)
    return [tokens[:length] for tokens, length in rows]


def _forward(
    model: Any, input_ids: Tensor, inputs: dict[str, Any], **step: Any
) -> tuple[Tensor, dict[str, Any]]:
    """Return the scores of the next token, float32 [rows, vocabulary], and the inputs of the step
    that follows.
    """
    output = model(
        **model.prepare_inputs_for_generation(input_ids, **step, **inputs), return_dict=True
    )
    later = {name: value for name, value in inputs.items() if name not in _PREFIX_ONLY}
    later = model._update_model_kwargs_for_generation(
        output, later, is_encoder_decoder=model.config.is_encoder_decoder
    )
    return output.logits[:, -1].to(copy=True, dtype=torch.float32), later
