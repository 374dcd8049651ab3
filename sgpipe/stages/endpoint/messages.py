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
_LONGEST_QUOTE = 200

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
        """Return what is asked once `first` answers have come: the rest, with other noise."""
        return replace(self, first=first, n=self.n - first)

    def alone(self) -> ChatRequest:
        """Return the same request for one answer, for servers that do not support `n`."""
        return replace(self, n=1)

    def fields(self, model: str, limit: str = MAX_TOKENS) -> dict[str, Any]:
        """Return the fields of the HTTP request; `limit`: what the server calls the largest number of tokens."""
        how, digest = self.sampling, hashlib.blake2b(f"{self.seed} {self.first}".encode(), digest_size=8).digest()
        fields: dict[str, Any] = {"model": model, "messages": list(self.messages)}
        fields |= {"seed": int.from_bytes(digest, "big") >> (64 - _SEED_BITS)}
        fields |= {limit: how.max_tokens, "temperature": how.temperature, "top_p": how.top_p}
        if how.top_k:
            fields["top_k"] = how.top_k
        if how.repetition_penalty != 1:
            fields["repetition_penalty"] = how.repetition_penalty
        if self.n > 1:
            fields["n"] = self.n
        if self.schema is not None:
            schema = {"name": "answer", "strict": True, "schema": self.schema}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.logprobs:
            fields |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return fields

    def body(self, model: str) -> bytes:
        """Return what identifies the request: equal requests have equal bytes, whatever a server calls the limit."""
        return json.dumps(self.fields(model), sort_keys=True).encode()


@dataclass(frozen=True)
class Choice:
    """One of the answers to a request. fault: why it cannot be used."""

    text: str
    fault: str | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None

    def to_json(self) -> list[Any]:
        """Return what `from_json` reads."""
        return [self.text, self.fault, self.logprobs]

    @classmethod
    def from_json(cls, values: list[Any]) -> Choice:
        """Raises ValueError or TypeError if `values` are not those of `to_json`."""
        text, fault, logprobs = values
        tokens = None if logprobs is None else tuple(tuple((str(a), float(b)) for a, b in token) for token in logprobs)
        return cls(text, fault, tokens)


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


def read_choices(completion: Any, logprobs: bool) -> list[Choice]:
    """Return the choices of a chat completion, in the order of their index.

    Raises ValueError if it is not a chat completion, or has no log-probabilities although they were asked for.
    """
    if not isinstance(completion, Mapping):
        raise ValueError("the answer is not JSON; the URL of an API often ends in /v1")
    if error := completion.get("error"):
        raise ValueError(f"the server answers with an error: {quote(str(error))}")
    try:
        choices = sorted(completion["choices"], key=lambda choice: choice.get("index") or 0)
        if not choices:
            raise ValueError("the answer has no choices")
        return [_read(choice, logprobs) for choice in choices]
    except (KeyError, TypeError, AttributeError):
        raise ValueError("the answer is not a chat completion") from None


def _read(choice: Mapping[str, Any], logprobs: bool) -> Choice:
    message, reason = choice["message"], choice.get("finish_reason")
    if refusal := message.get("refusal"):
        return Choice("", f"the model refused: {quote(str(refusal))}")
    if reason == "content_filter":
        return Choice("", "a content filter withheld the answer")
    text = message.get("content") or ""
    if isinstance(text, list):  # some servers return it in parts
        text = "".join(str(part.get("text", "")) for part in text)
    if logprobs:  # which tell more than the text: a token that is a space has some, too
        tokens = (choice.get("logprobs") or {}).get("content")
        if not tokens:
            raise ValueError("the answer has no log-probabilities")
        return Choice(text, None, tuple(map(_likeliest, tokens)))
    if not text.strip():
        return Choice("", "the answer is empty" + (": max_tokens are used up" if reason == "length" else ""))
    return Choice(text)


def _likeliest(token: Mapping[str, Any]) -> TokenLogprobs:
    found = {str(each["token"]): float(each["logprob"]) for each in [token, *(token.get("top_logprobs") or ())]}
    return tuple(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def quote(text: str) -> str:
    """Return a text of a server for use within a message: one line, not too long."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return line if len(line) <= _LONGEST_QUOTE else line[: _LONGEST_QUOTE - 1] + "…"


def conversation(text: str, image: str | None = None, system: str | None = None) -> list[dict[str, Any]]:
    """Return the messages of one question.

    Args:
        image: a data URL, shown before the text.
    """
    content: Any = text
    if image is not None:
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    return [{"role": "system", "content": system}, *messages] if system else messages


def image_url(image: Image.Image, longest_side: int | None = None) -> str:
    """Return an image as the data URL of a PNG, which changes no pixel.

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
    """Return whether a server that opens this image's file sees it as it is: 8-bit, opaque, and not turned by EXIF."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    plain = image.format in ("JPEG", "PNG") and image.mode in ("RGB", "L")
    return plain and not turned and "transparency" not in image.info


def file_url(content: bytes, media_type: str) -> str:
    """Return the bytes of a file as a data URL."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
