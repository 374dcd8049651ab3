"""A question to a model of a server, and its answers, in the form of the OpenAI chat API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, NamedTuple

from PIL import Image

from sgpipe.sources.fields import clean
from sgpipe.storage.tokens import CACHED, COMPLETION, PROMPT

MAX_TOKENS = "max_tokens"
MAX_COMPLETION_TOKENS = "max_completion_tokens"
TOP_LOGPROBS = 20  # the most that OpenAI and, unless started otherwise, vLLM return
_SEED_BITS = 31  # llama.cpp and PyTorch take 32 bits
_LONGEST_QUOTE = 200  # characters
_LONGEST_ANSWER = 4000  # characters of an answer that is sent back
_LARGEST_COUNT = 2**53  # of tokens

Check = Callable[[str], str | None]


@dataclass(frozen=True)
class ChatRequest:
    """One question. `image`: shown before the text; a string is its data URL. `replies`: answers,
    and what is wrong.

    vLLM and SGLang know `top_k` and `repetition_penalty`, OpenAI does not.
    """

    text: str
    image: Image.Image | str | None = None
    system: str | None = None
    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0  # selects the noise of all `n` answers; servers get 31 bits of it and of `first`
    n: int = 1
    schema: Mapping[str, Any] | None = None  # JSON schema that the server enforces
    logprobs: bool = False  # also return the likeliest first tokens
    first: int = 0  # number of answers that there are already
    # returns what is wrong with a text, which is then requested once more, or None
    check: Check | None = None
    replies: Sequence[Mapping[str, Any]] = ()

    @property
    def messages(self) -> list[Mapping[str, Any]]:
        content: Any = self.text
        if self.image is not None:
            content = [
                {"type": "image_url", "image_url": {"url": self.image}},
                {"type": "text", "text": self.text},
            ]
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": content}, *self.replies]

    def fields(self, model: str, limit: str = MAX_TOKENS) -> dict[str, Any]:
        """Return the fields of the HTTP request; `limit`: what the server calls the largest number
        of tokens.
        """
        digest = blake2b(f"{self.seed} {self.first}".encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "big") >> (64 - _SEED_BITS)
        fields: dict[str, Any] = {"model": model, "messages": self.messages, "seed": seed}
        fields |= {limit: self.max_tokens, "temperature": self.temperature, "top_p": self.top_p}
        others = {"top_k": 0, "repetition_penalty": 1, "n": 1}
        fields |= {
            name: getattr(self, name)
            for name, default in others.items()
            if getattr(self, name) != default
        }
        if self.schema is not None:
            schema = {"name": "answer", "strict": True, "schema": self.schema}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.logprobs:
            fields |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return fields

    def once_more(self, number: int, text: str, wrong: str) -> ChatRequest:
        """Return the request for another text in place of the one of this number."""
        reply = [
            {"role": "assistant", "content": text[:_LONGEST_ANSWER]},
            {"role": "user", "content": wrong},
        ]
        return replace(self, replies=reply, n=1, first=number)


class Choice(NamedTuple):
    """One of the answers to a request; `check` may still find its text wrong.

    `fault`: why it cannot be used. `logprobs`: natural log-probabilities of the likeliest first
    tokens, if asked for.
    """

    text: str
    fault: str | None = None
    logprobs: dict[str, float] | None = None


@dataclass(frozen=True)
class Refusal:
    """Why there is no answer: the content is filtered, the answer is empty, the prompt too long, a
    box has no area.
    """

    reason: str


def read_choices(completion: Any, logprobs: bool) -> list[Choice]:
    """Return the choices of a chat completion by their index.

    Raises:
        ValueError: it is none, or lacks `logprobs`.
    """
    try:
        error = completion.get("error")
        if error:
            raise ValueError(f"the server answers with an error: {quote(str(error))}")
        ordered = sorted(completion["choices"], key=lambda choice: choice.get("index") or 0)
        return [_read(choice, choice["message"], logprobs) for choice in (ordered[0], *ordered[1:])]
    except (LookupError, TypeError, AttributeError):
        raise ValueError(
            "the answer is not a chat completion; the URL of an API often ends in /v1"
        ) from None


def _read(choice: Mapping[str, Any], message: Mapping[str, Any], logprobs: bool) -> Choice:
    reason = choice.get("finish_reason")
    text = message.get("content") or ""
    refusal = message.get("refusal")
    if refusal:
        return Choice("", f"the model refused: {quote(str(refusal))}")
    if reason == "content_filter":
        return Choice("", "a content filter withheld the answer")
    if isinstance(text, list):  # some servers return it in parts
        text = "".join(str(part.get("text", "")) for part in text)
    if logprobs:  # which tell more than the text: a token that is a space has some, too
        return Choice(clean(text), None, _first_logprobs(choice))
    if not text.strip():
        cause = ": max_tokens are used up" if reason == "length" else ""
        return Choice("", f"the answer is empty{cause}")
    return Choice(clean(text))  # `max_tokens` may cut a character into halves


def read_tokens(completion: Mapping[str, Any]) -> Counter[str] | None:
    """Return the tokens of a completion; None: the server does not count them."""
    usage = completion.get("usage")
    if not isinstance(usage, Mapping):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get(CACHED) if isinstance(details, Mapping) else 0
    numbers = {PROMPT: usage.get(PROMPT), CACHED: cached, COMPLETION: usage.get(COMPLETION)}
    tokens = Counter({name: number for name, number in numbers.items() if _is_count(number)})
    tokens[CACHED] = min(tokens[CACHED], tokens[PROMPT])
    return tokens


def _is_count(number: object) -> bool:
    return isinstance(number, int) and 0 <= number < _LARGEST_COUNT


def _first_logprobs(choice: Mapping[str, Any]) -> dict[str, float]:
    tokens = (choice.get("logprobs") or {}).get("content")
    if not tokens:
        raise ValueError("the answer has no log-probabilities")
    likeliest = [tokens[0], *(tokens[0].get("top_logprobs") or ())]
    return {clean(str(token["token"])): float(token["logprob"]) for token in likeliest}


def quote(text: str) -> str:
    """Return a text of a server for use within a message: one line, not too long."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(printable.split())
    return line if len(line) <= _LONGEST_QUOTE else line[: _LONGEST_QUOTE - 1] + "…"
