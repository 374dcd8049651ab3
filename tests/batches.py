"""A provider of batches: it answers the requests of a file as a scripted server would, at once."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.endpoint_server import EndpointServer

# From a request to another line than that of its answer; None: it is answered.
Failure = Callable[[dict[str, Any]], "Mapping[str, object] | None"]

EXPIRED = {"response": None, "error": {"code": "batch_expired", "message": "it took too long"}}
REJECTED = {
    "response": {
        "status_code": 400, "request_id": "r", "body": {"error": {"message": "the prompt is too long"}}
    },
    "error": None,
}  # fmt: skip
# as `vllm run-batch` writes it
REJECTED_BY_VLLM = {
    "response": {"status_code": 400, "request_id": "r", "body": None},
    "error": {
        "error": {"message": "the prompt is too long", "type": "BadRequestError", "code": 400}
    },
}


def requests_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def answer_batch(
    file: Path,
    server: EndpointServer,
    failure: Failure = lambda request: None,
    fault: str | None = None,
) -> Path:
    """Write the answers to the requests of a file, the last first.

    Args:
        server: tells the answers; nothing is sent to it.
        failure: what becomes of a request.
        fault: of the completions, as `EndpointServer` has them.
    """
    lines = []
    for request in reversed(requests_of(file)):
        completion = server.completion(request["body"], fault)
        response = {"status_code": 200, "request_id": "r", "body": completion}
        outcome = failure(request) or {"response": response, "error": None}
        line = {"id": uuid.uuid4().hex, "custom_id": request["custom_id"], **outcome}
        lines.append(json.dumps(line))
    answers = file.with_name(f"{file.stem}-answers.jsonl")
    answers.write_text("\n".join(lines) + "\n")
    return answers
