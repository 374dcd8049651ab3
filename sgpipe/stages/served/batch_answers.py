"""Answers of a batch, in the form of the output and error files of OpenAI and of `vllm run-batch`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, TypeAdapter, ValidationError

from sgpipe.errors import UserError, add_filename
from sgpipe.stages.served.chat import quote

ANSWERED = 200
REJECTED = (400, 413, 422)  # the same request would be refused again
_KEY_LENGTH = 64
_GZIP = b"\x1f\x8b"
_OBJECT: TypeAdapter[dict[str, object]] = TypeAdapter(dict[str, object])


class BatchAnswer(NamedTuple):
    """What a batch says of a request.

    Attributes:
        key: of the request.
        status: of HTTP; 0: the request was not answered, such as in a batch that expired.
        content: the completion, as JSON, or why there is none.
    """

    key: str
    status: int
    content: str

    @property
    def is_final(self) -> bool:
        """Whether the same request would get the same answer."""
        return self.status == ANSWERED or self.status in REJECTED

    def completion(self) -> dict[str, object]:
        """Return the answer to a request that has one."""
        return _OBJECT.validate_json(self.content)


class _Response(BaseModel):
    status_code: int
    body: object = None


class _Line(BaseModel):
    custom_id: str
    response: _Response | None
    error: object = None


def read_answers(file: Path) -> Iterator[BatchAnswer]:
    """Yield the answers of a file, line by line.

    Raises:
        UserError: a line is not an answer of a batch, such as one that was cut.
    """
    with add_filename(file), file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if number == 1 and line.startswith(_GZIP):
                raise UserError(f"{file} is compressed: unpack it (gunzip)")
            if line.strip():
                yield _read(line, f"{file}, line {number}")


def _read(line: bytes, place: str) -> BatchAnswer:
    try:
        answer = _Line.model_validate_json(line)
    except ValidationError:
        raise UserError(_fault(line, place)) from None
    if len(answer.custom_id) != _KEY_LENGTH or not _is_hex(answer.custom_id):
        raise UserError(
            f"{place}: {quote(answer.custom_id)!r} is not the custom_id of a request by"
            " --batch-file: pass the answers to its files"
        )
    return _outcome(answer)


def _outcome(line: _Line) -> BatchAnswer:
    response = line.response
    if response is None:
        return BatchAnswer(line.custom_id, 0, _message(line.error) or "not answered")
    message = _message(line.error) or _message(response.body)
    if response.status_code == ANSWERED and isinstance(response.body, dict) and not message:
        return BatchAnswer(line.custom_id, ANSWERED, json.dumps(response.body))
    # some servers answer with an error and HTTP 200
    status = 0 if response.status_code == ANSWERED else response.status_code
    reason = f"HTTP {response.status_code}"
    return BatchAnswer(line.custom_id, status, f"{reason}: {message}" if message else reason)


def _message(error: object) -> str:
    """Return what an error says, in one line; "": it is none."""
    while isinstance(error, Mapping):
        error = error.get("error") or error.get("message") or error.get("code")
    return quote(str(error)) if error else ""


def _fault(line: bytes, place: str) -> str:
    """Return what is wrong with a line that is not an answer."""
    try:
        fields = _OBJECT.validate_json(line)
    except ValidationError:
        return f"{place} is not JSON, or was cut: download the file again, or delete this line"
    if "body" in fields and "response" not in fields:
        return f"{place} is a request: pass the file of answers that it leads to"
    return f"{place} is not an answer of a batch: it needs custom_id and response"


def _is_hex(text: str) -> bool:
    return set(text) <= set("0123456789abcdef")
