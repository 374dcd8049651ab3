"""Recall plans and the answers to them: lines of the file of judgements that say nothing of the run's relations."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from sgpipe.utils import LARGEST_SEED

MOST_QUESTIONS = 10_000  # of a plan, which is one line
Id = Annotated[str, StringConstraints(pattern=r"^[\w.:-]{1,64}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Text = Annotated[str, StringConstraints(max_length=1000)]
Index = Annotated[int, Field(ge=0, lt=2**31)]


class Strict(BaseModel):
    """A part of a line."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PlanLine(Strict):
    """What people are asked about."""

    plan: Id
    at: Text
    by: Name
    run: Text
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)]

    @property
    def id(self) -> str:
        return self.plan


class BlindQuestion(NamedTuple):
    """Boxes of an image between which people say what holds; `weight`: pairs of the image for each pair of these."""

    split: str
    image_id: str
    boxes: list[int]
    weight: float

    @property
    def place(self) -> tuple[str, str]:
        return self.split, self.image_id


class RecallPlan(PlanLine):
    """A random sample of the run's `images` with two boxes or more, in the order in which they are asked about."""

    kind: Literal["recall"]
    images: Annotated[int, Field(ge=1)]
    questions: Annotated[list[BlindQuestion], Field(min_length=1, max_length=MOST_QUESTIONS)]


class NamedRelation(Strict):
    """A relation that a person names."""

    subject: Index
    object: Index
    predicate: Annotated[str, StringConstraints(min_length=1, max_length=200)]


class BlindAnswer(Strict):
    """All that a person says holds between the boxes of a question without seeing the run's relations; None: skipped.

    Of several answers of one person to one question, the latest in the file counts.
    """

    id: Id
    at: Text
    by: Name
    run: Text
    plan: Id
    split: Text
    image_id: Text
    relations: Annotated[list[NamedRelation], Field(max_length=1000)] | None
