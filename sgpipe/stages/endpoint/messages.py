"""What an endpoint is asked, and what it answers."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

from PIL import ExifTags, Image

MAX_TOKENS, MAX_COMPLETION_TOKENS = "max_tokens", "max_completion_tokens"
TOP_LOGPROBS = 20  # the most that OpenAI and, unless started otherwise, vLLM return
_SEED_BITS = 31  # llama.cpp and PyTorch take 32 bits

TokenLogprobs = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class ChatSampling:
    """How the text of an answer is drawn. A server is sent `top_k` only if it is not 0.

    The OpenAI API knows neither `top_k` nor `repetition_penalty`; vLLM and SGLang take both.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    def fields(self, limit: str) -> dict[str, Any]:
        """The fields of a request; `limit`: what the server calls the largest number of tokens."""
        fields = {limit: self.max_tokens, "temperature": self.temperature, "top_p": self.top_p}
        if self.top_k:
            fields["top_k"] = self.top_k
        if self.repetition_penalty != 1:
            fields["repetition_penalty"] = self.repetition_penalty
        return fields


@dataclass(frozen=True)
class ChatRequest:
    """Messages, and how they are answered.

    n: number of answers. seed: selects the noise of all of them; servers get 31 bits that are derived from it and from
    `first`, the number of answers that there are already. schema: JSON schema that the text must follow, which the
    server enforces. logprobs: also return the likeliest tokens.
    """

    messages: Sequence[Mapping[str, Any]]
    sampling: ChatSampling
    seed: int = 0
    n: int = 1
    schema: Mapping[str, Any] | None = None
    logprobs: bool = False
    first: int = 0

    def rest(self, first: int) -> ChatRequest:
        """What is asked once `first` answers have come: the rest, with noise of their own."""
        return replace(self, first=first, n=self.n - first)

    def alone(self) -> ChatRequest:
        """The same with one answer, for servers that know no other."""
        return replace(self, n=1)

    def body(self, model: str, limit: str = MAX_TOKENS) -> bytes:
        """The body of the HTTP request: equal requests have equal bytes; `limit`: see `ChatSampling.fields`."""
        seed = derived_seed(self.seed, self.first)
        fields = {"model": model, "messages": list(self.messages), "seed": seed, **self.sampling.fields(limit)}
        if self.n > 1:
            fields["n"] = self.n
        if self.schema is not None:
            schema = {"name": "answer", "strict": True, "schema": self.schema}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.logprobs:
            fields |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return json.dumps(fields, sort_keys=True).encode()


@dataclass(frozen=True)
class Answer:
    """The texts that can be used, at least one and at most as many as were asked for.

    logprobs: per text and per token of it, the likeliest tokens there with their natural log-probabilities, likeliest
    first, the chosen one among them; None if they were not asked for.
    """

    texts: tuple[str, ...]
    logprobs: tuple[tuple[TokenLogprobs, ...], ...] | None = None


@dataclass(frozen=True)
class Refusal:
    """The server answers, but not this request: its content is filtered, the answer is empty, the prompt too long."""

    reason: str


def derived_seed(seed: int, number: int) -> int:
    """31 bits that select the noise of the answer `number`, the same in every process."""
    digest = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _SEED_BITS)


def conversation(text: str, image: str | None = None, system: str | None = None) -> list[dict[str, Any]]:
    """The messages of one question.

    Args:
        image: a data URL, shown before the text.
    """
    content: Any = text
    if image is not None:
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    return [{"role": "system", "content": system}, *messages] if system else messages


def image_url(image: Image.Image, longest_side: int | None = None) -> str:
    """An image as the data URL of a PNG, which changes no pixel.

    Args:
        longest_side: in pixels; a larger image is resized to it.
    """
    if longest_side is not None and max(image.size) > longest_side:
        scale = longest_side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return file_url(buffer.getvalue(), "image/png")


def is_plain(image: Image.Image) -> bool:
    """Whether a server that opens the file of this image sees it as it is: 8-bit, opaque, and not turned by EXIF."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return (
        image.format in ("JPEG", "PNG")
        and image.mode in ("RGB", "L")
        and not turned
        and "transparency" not in image.info
    )


def file_url(content: bytes, media_type: str) -> str:
    """The bytes of a file as a data URL."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
