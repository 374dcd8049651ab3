"""Any image-text-to-text checkpoint of transformers as a captioner, or asked what an endpoint can
be asked.

The vision features of an image and the prompt are computed once, then all samples together: on a
CPU for each image alone, on a GPU for a group of them (`batches`). As with BLIP, scores differ in
their last digits across devices, number formats, library versions and thread counts.
"""

import copy
import inspect
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

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
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from sgpipe.errors import ComputationError, UserError, first_line
from sgpipe.recipe import CaptionConfig
from sgpipe.stages import checkpoint
from sgpipe.stages.base import image_threads
from sgpipe.stages.caption.batches import (
    FIRST_WIDTH,
    first_scores,
    merge_inputs,
    sample_nucleus,
    send_inputs,
)
from sgpipe.stages.caption.blip import GPU_GROUP
from sgpipe.stages.caption.captioner import EXAMPLE, CaptionInput, ChatCaptioner
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
_WIDE_EXAMPLE = Image.linear_gradient("L").resize((160, 64)).convert("RGB")
_MORE_TEXT = "Name the largest thing first."
_WIDER = 4  # times as many tokens are looked at, where the nucleus has more

# a question, and its prompt and image as the model reads them
_Prepared: TypeAlias = tuple[ChatRequest, Any]


class VisionLanguageCaptioner(ChatCaptioner):
    """Captions by a model of transformers' `AutoModelForImageTextToText`, through its processor."""

    def __init__(self, config: CaptionConfig) -> None:
        """`config`: see `captioner.settings_of`."""
        super().__init__(config)
        self.source = str(config.captioner)
        self.batch_error = ""  # why a GPU computes each image alone
        self.width: int | None = None  # of the likeliest tokens that a GPU looks at

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
        self.width = None if self.device.type == "cpu" else FIRST_WIDTH
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
                self._decode([self.inputs(EXAMPLE)], [0], short)
            if self.device.type == "cuda":
                self.batch_error = self._why_not_together()
        group = GPU_GROUP if self.device.type == "cuda" and not self.batch_error else 1
        self.image_memory = GpuMemory(self.device, _REMEDY, threads=1, batch_size=group)

    def _why_not_together(self) -> str:
        """Return why images are not computed in groups: scores are not those of each alone; ""
        if they are.
        """
        long_text = self.request(CaptionInput(_WIDE_EXAMPLE, key=0))
        if self.is_chat:
            long_text = replace(long_text, text=f"{long_text.text} {_MORE_TEXT}")
        examples = [self.inputs(EXAMPLE), self.inputs(_WIDE_EXAMPLE, self.chat(long_text))]
        try:
            alone = torch.cat([self._first_scores([example]) for example in examples])
            together = self._first_scores(examples)
        except checkpoint.MISFITS as reason:
            if is_gpu_failure(reason):
                raise
            return first_line(reason)
        spread = alone.std(dim=1)
        difference = ((together - alone).std(dim=1) / spread).max()
        if bool(difference <= torch.finfo(self.dtype).eps ** 0.5):
            return ""
        return "scores of several images are not those of each"

    def _first_scores(self, inputs: Sequence[Any]) -> Tensor:
        """Return the scores of the first token, [images, vocabulary]."""
        scores: Tensor = self._generate(inputs, self.generation, first_scores)
        return scores

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

        Logarithms are those of "yes" and "no". A thread prepares the next requests meanwhile.
        """
        threads = min(image_threads(self.config.resources, elsewhere=self.device.type != "cpu"), 1)
        ahead = self.image_memory.batch_size + 1
        read = partial(self._attempt, lambda request: (request, self._read(request)))
        with prefetch(read, requests, threads, ahead) as prepared:
            groups = iter(lambda: list(islice(prepared, self.image_memory.batch_size)), [])
            for group in groups:
                readable = [item for item in group if not isinstance(item, Refusal)]
                answers = iter(self._answer_all(readable))
                for item in group:
                    yield item if isinstance(item, Refusal) else next(answers)

    def _attempt(self, function: Callable[[Any], Any], item: Any) -> Any:
        try:
            with enough_memory(self.device, _REMEDY):
                return function(item)
        except checkpoint.MISFITS as reason:  # as of Qwen's processor for a strip of 1 x 201 pixels
            if is_gpu_failure(reason):  # then no image can be processed
                raise
            return self._refusal(reason)

    def _answer_all(self, prepared: Sequence[_Prepared]) -> list[list[Choice] | Refusal]:
        """Answer together; if a request cannot be answered, each alone."""
        if not prepared:
            return []
        try:
            return self.image_memory.compute(self._answers, prepared)
        except checkpoint.MISFITS as reason:
            if is_gpu_failure(reason):  # then no image can be processed
                raise
            if len(prepared) == 1:
                return [self._refusal(reason)]
        return [self._answer_all([item])[0] for item in prepared]

    def _refusal(self, reason: Exception) -> Refusal:
        return Refusal(f"the {self.role} cannot process the image: {first_line(reason)}")

    def _read(self, request: ChatRequest) -> Any:
        assert isinstance(request.image, Image.Image)
        return self.inputs(request.image, self.chat(request))

    def _answers(self, prepared: Sequence[_Prepared]) -> list[list[Choice] | Refusal]:
        if prepared[0][0].logprobs:
            return [self._answer(item) for item in prepared]
        inputs = [single for _, single in prepared]
        keys = [request.seed for request, _ in prepared]
        samples = max(request.n for request, _ in prepared)
        written = self._decode(inputs, keys, self.generation, samples)
        texts = [
            of_request[: request.n]
            for (request, _), of_request in zip(prepared, written, strict=True)
        ]
        self._correct([request for request, _ in prepared], texts)
        return [list(map(Choice, of_request)) for of_request in texts]

    def _correct(self, requests: Sequence[ChatRequest], texts: Sequence[list[str]]) -> None:
        """Replace texts by what the model answers when it is told what is wrong with them."""
        wrong: list[tuple[int, int, ChatRequest]] = []  # request, number of its text, what follows
        for index, request in enumerate(requests):
            for number, text in enumerate(texts[index]):
                fault = request.check(text) if request.check else None
                if fault:
                    wrong.append((index, number, request.once_more(number, text, fault)))
        size = self.image_memory.batch_size
        for start in range(0, len(wrong), size):
            group = wrong[start : start + size]
            inputs = [self._read(more) for *_, more in group]
            keys = [more.seed ^ more.first for *_, more in group]
            corrected = self._decode(inputs, keys, self.generation, 1)
            for (index, number, _), [text] in zip(group, corrected, strict=True):
                texts[index][number] = text

    @torch.inference_mode()
    def _answer(self, prepared: _Prepared) -> list[Choice]:
        """Return the log-probabilities of one question."""
        _, inputs = prepared
        logits = self.model(**inputs.to(self.device, self.dtype)).logits[:, -1]
        [shares] = self._yes_and_no(logits)
        return [Choice("", None, shares)]

    def ask_groups(
        self, groups: Iterable[Sequence[ChatRequest]]
    ) -> Iterator[list[list[Choice] | Refusal]]:
        return (list(self.ask_together(group)) for group in groups)

    def ask_together(self, requests: Sequence[ChatRequest]) -> Iterator[list[Choice] | Refusal]:
        """Yield the answers to requests that begin with the same image and text, whose `logprobs`
        are asked for.
        """
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

    def _decode(
        self,
        inputs: Sequence[Any],
        keys: Sequence[int],
        generation: GenerationConfig,
        samples: int = 0,
    ) -> list[list[str]]:
        """Return the text of each sample of each image, without special tokens.

        Raises:
            ComputationError: the scores are not finite.
        """
        samples = samples or self.config.samples
        if self.config.decoding == "beam":
            samples = 1
            sequences = self._generate(inputs, generation)
            lengths = [single["input_ids"].shape[1] for single in inputs]
            prompt = 1 if self.model.config.is_encoder_decoder else max(lengths)
            rows = sequences[:, prompt:].tolist()
        else:
            rows = self._sample(inputs, keys, generation, samples)
        texts = list(map(self.decode, rows))
        return [texts[first : first + samples] for first in range(0, len(texts), samples)]

    def _sample(
        self,
        inputs: Sequence[Any],
        keys: Sequence[int],
        generation: GenerationConfig,
        samples: int,
    ) -> list[list[int]]:
        """Return the tokens of each sample, those of one image after those of another."""
        while True:
            sample = partial(sample_nucleus, keys, self.config, samples, self.width)
            rows: list[list[int]] | None = self._generate(inputs, generation, sample)
            if rows is not None:
                return rows
            assert self.width is not None
            self.width *= _WIDER  # from now on

    @torch.inference_mode()
    def _generate(
        self,
        inputs: Sequence[Any],
        generation: GenerationConfig,
        decode: Callable[..., Any] | None = None,
    ) -> Any:
        """Return what `decode`, or else transformers, makes of the images."""
        padding = self.tokenizer.pad_token_id
        single = inputs[0] if len(inputs) == 1 else merge_inputs(inputs, padding or 0)
        sent = send_inputs(single, self.device, self.dtype)
        return self.model.generate(**sent, generation_config=generation, custom_generate=decode)


def _log_odds(answer: Sequence[Choice]) -> float:
    shares = answer[0].logprobs or {}
    return shares["yes"] - shares["no"]
