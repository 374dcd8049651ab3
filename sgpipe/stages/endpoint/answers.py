"""Read the choices out of a chat completion, which may be damaged, refused or of another model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgpipe.stages.endpoint.messages import TokenLogprobs

FILTERED = "content_filter"
_LONGEST_QUOTE = 200


@dataclass(frozen=True)
class Choice:
    """One of the answers to a request. fault: why it cannot be used."""

    text: str
    fault: str | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None

    def to_json(self) -> list[Any]:
        """As `from_json` reads it."""
        return [self.text, self.fault, self.logprobs]

    @classmethod
    def from_json(cls, values: list[Any]) -> Choice:
        """Raises ValueError, TypeError: it is not what `to_json` makes."""
        text, fault, logprobs = values
        return cls(text, fault, None if logprobs is None else tuple(_pairs(token) for token in logprobs))


def read_choices(completion: Any, logprobs: bool) -> list[Choice]:
    """The choices of a chat completion, in the order of their index.

    Raises ValueError: it is no chat completion, or has no log-probabilities although they were asked for.
    """
    if not isinstance(completion, Mapping):
        raise ValueError("the answer is not a JSON object")
    if error := completion.get("error"):
        raise ValueError(f"the server answers with an error: {quote(str(error))}")
    choices = completion.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(each, Mapping) for each in choices):
        raise ValueError("the answer has no choices")
    return [_read(choice, logprobs) for choice in sorted(choices, key=_index)]


def same_model(asked: str, answered: Any) -> bool:
    """Whether the model that answered is the one that was asked for: servers append a date, a revision or a tag."""
    if not isinstance(answered, str):
        return True  # not every server says it
    return re.fullmatch(rf"{re.escape(asked)}(-\d{{4}}-?\d\d-?\d\d|[@:].+)?", answered) is not None


def quote(text: str) -> str:
    """A text of a server within a message: one line, not too long."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return line if len(line) <= _LONGEST_QUOTE else line[: _LONGEST_QUOTE - 1] + "…"


def _index(choice: Mapping[str, Any]) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else 0


def _read(choice: Mapping[str, Any], logprobs: bool) -> Choice:
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise ValueError("a choice has no message")
    reason, refusal, text = choice.get("finish_reason"), message.get("refusal"), _text(message.get("content"))
    if refusal:
        return Choice("", f"the model refused: {quote(str(refusal))}")
    if reason == FILTERED:
        return Choice("", "a content filter withheld the answer")
    if logprobs:  # which tell more than the text: a token that is a space has some, too
        return Choice(text, None, _logprobs(choice.get("logprobs")))
    if not text.strip():
        return Choice("", "the answer is empty" + (": max_tokens are used up" if reason == "length" else ""))
    return Choice(text)


def _text(content: Any) -> str:
    """The text of a message, which some servers return in parts."""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    if not isinstance(content, str | None):
        raise ValueError("the content of a message is not text")
    return content or ""


def _logprobs(values: Any) -> tuple[TokenLogprobs, ...]:
    tokens = values.get("content") if isinstance(values, Mapping) else None
    if not isinstance(tokens, list) or not tokens:
        raise ValueError("the answer has no log-probabilities")
    try:
        return tuple(_likeliest(token) for token in tokens)
    except (KeyError, TypeError):
        raise ValueError("the log-probabilities cannot be read") from None


def _likeliest(token: Mapping[str, Any]) -> TokenLogprobs:
    found = {str(each["token"]): float(each["logprob"]) for each in [token, *(token.get("top_logprobs") or ())]}
    return tuple(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def _pairs(token: list[Any]) -> TokenLogprobs:
    return tuple((str(text), float(value)) for text, value in token)
