"""What people say in FiftyOne about the relations of a run, as lines of a file of judgements."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError

_VERDICTS = {"right", "wrong", "unsure"}


def read_answers(file: Path, content: bytes, now: str) -> list[dict[str, Any]]:
    """Read a dataset of FiftyOne that sgpipe wrote.

    Tags of relations are judgements, and another label is another predicate.

    Args:
        file: for messages.
        content: of its samples.json.
        now: the time of the answers, as FiftyOne keeps none.

    Returns:
        The fields of a `Judgement` of each relation that people tagged or changed.

    Raises:
        UserError: the file is not the samples.json of such a dataset.
    """
    try:
        samples = json.loads(content)["samples"]
        if samples and not any("relations" in sample for sample in samples):
            raise KeyError("relations")
        answers = []
        for sample, relation in _relations(samples):
            answer = _answer(sample, relation)
            if answer is not None:
                answers.append(answer | {"at": now, "by": "FiftyOne"})
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{file}: expected the samples.json of a FiftyOne dataset that sgpipe wrote"
        ) from None
    return answers


def _relations(samples: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the relations of all samples, each with its sample."""
    for sample in samples:
        detections = (sample.get("relations") or {}).get("detections")
        for relation in detections or ():
            yield sample, relation


def _answer(sample: Any, relation: Any) -> dict[str, Any] | None:
    """Return what people say about a relation; None: nothing."""
    verdicts = _VERDICTS.intersection(relation.get("tags") or ())
    label = _words(relation.get("label"))
    is_changed = label != _words(relation.get("predicate"))
    if not is_changed and not verdicts:
        return None
    answer = {
        "run": sample.get("run"),
        "split": sample.get("split"),
        "image_id": sample.get("image_id"),
        "subject": relation.get("subject_index"),
        "object": relation.get("object_index"),
        "predicate": relation.get("predicate"),
        "confidence": relation.get("confidence"),
        "id": relation["_id"]["$oid"],
    }
    if is_changed:
        answer["change"] = {"action": "predicate", "predicate": label}
    else:
        answer["judgement"] = verdicts.pop() if len(verdicts) == 1 else "unsure"
    return answer


def _words(text: str | None) -> str:
    return " ".join((text or "").split())
