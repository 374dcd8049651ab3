"""Relations that people judged, as a training uses them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from sgpipe.errors import UserError
from sgpipe.storage.datasets import open_files
from sgpipe.storage.judgement_lines import RelationKey
from sgpipe.storage.judgements import JudgementLog

# By split and image id.
Judged: TypeAlias = "Mapping[tuple[str, str], Sequence[JudgedRelation]]"


class JudgedRelation(NamedTuple):
    """A relation that people judged.

    Attributes:
        right: whether it is correct
        share: of the visits of its image in which it is used
    """

    subject: int
    object: int
    predicate: str
    right: bool
    share: float


def judged_relations(run: str) -> tuple[dict[tuple[str, str], list[JudgedRelation]], list[str]]:
    """Return what people agree on in a run, by split and image, and the problems of the file.

    A changed relation is wrong as it was, and right as it is now. A judgement that a plan asked for
    stands for as many relations as its stratum has for each; others, for as many as one of a plan
    does on average.

    Raises:
        UserError: there is no run, or nothing in it was judged
    """
    files = open_files(run)
    log = JudgementLog(files.judgements, str(files.manifest.run.get("fingerprint", "")))
    judgements = _agreed_judgements(log)
    if not judgements:
        problem = f": {log.problems[0]}" if log.problems else ""
        raise UserError(
            f"{run}: nobody has judged its relations{problem}; do it in `sgpipe view {run}`"
        )
    largest = max(weight for _, weight in judgements.values())
    images = dict[tuple[str, str], list[JudgedRelation]]()
    for key, (right, weight) in judgements.items():
        relation = JudgedRelation(key.subject, key.object, key.predicate, right, weight / largest)
        images.setdefault((key.split, key.image_id), []).append(relation)
    return images, log.problems


def _agreed_judgements(log: JudgementLog) -> dict[RelationKey, tuple[bool, float]]:
    """Return whether each judged relation is right, and how many relations it stands for."""
    weights = _judgement_weights(log)
    originals: dict[RelationKey, tuple[bool, float]] = {}
    corrections: dict[RelationKey, tuple[bool, float]] = {}
    for state in log.current():
        remaining = state.resolve()
        if remaining is None:
            continue
        weight = weights.get(state.key, 1.0)
        originals[state.key] = (state.key in remaining, weight)
        corrections |= dict.fromkeys(sorted(remaining), (True, weight))
    # `originals` first for the order, and last because what people say of a relation itself counts
    return originals | corrections | originals


def _judgement_weights(log: JudgementLog) -> dict[RelationKey, float]:
    """Return how many relations each judgement of a random plan stands for; the mean is 1."""
    weights: dict[RelationKey, float] = {}
    for plan in log.plans.values():
        if plan.kind == "doubts":  # no random sample: each stands for itself
            continue
        judged = log.judged(plan.plan)
        questions = [question for question in plan.questions if question.key in judged]
        strata = {question.key: question.stratum for question in questions}
        sizes = Counter(strata.values())
        represented = {
            key: plan.strata[stratum].relations / sizes[stratum] for key, stratum in strata.items()
        }
        mean = sum(represented.values()) / max(len(represented), 1)
        weights |= {key: number / mean for key, number in represented.items()}
    return weights
