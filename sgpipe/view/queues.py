"""Queues: relations and images worth looking at. Most are found once, when the index is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sgpipe.errors import UserError
from sgpipe.records import TRAINING_CONFIDENCE
from sgpipe.stats.health import prepare_checks
from sgpipe.stats.health_rules import PLACED, RULES, HealthRule
from sgpipe.stats.measures import WHY_NO_RELATIONS
from sgpipe.utils.console import single_line

_CONFIDENT, _RARE = 0.5, 3
_DOUBTED = 0.5  # probability of a second opinion
_WITHOUT, _ERRORS, _NOT_JUDGED, _CONFLICTS = "without_relations", "errors", "not_judged", "conflicts"


Of = Literal["relations", "images"]


@dataclass(frozen=True)
class Queue:
    """Hits worth looking at: `Filters.queue` is `key`. `advice`: what to do about them; empty: nothing special."""

    key: str
    title: str
    count: int
    advice: str
    of: Of


@dataclass(frozen=True)
class _Mark:
    """A queue whose hits have the bit `bit` in their flags; `query` finds them by the columns `finds`."""

    bit: int
    key: str
    title: str
    advice: str
    query: str
    finds: tuple[str, ...]

    @property
    def of(self) -> Of:
        return "images" if self.finds in ((), ("category",)) else "relations"

    @property
    def statement(self) -> str:
        """Inserts the marks of all hits."""
        found = f"with found as materialized ({self.query}) insert into {self.of}_marks"
        if self.of == "images":
            source = "objects semi join found using (category)" if self.finds else "found"
            return f"{found} select distinct image, {1 << self.bit} from {source}"
        if self.finds == ("number",):
            return f"{found} select image, number, {1 << self.bit} from found"
        pair = (
            "least(kept.subject, kept.object) = found.subject and greatest(kept.subject, kept.object) = found.object "
        )
        by = {
            ("predicate",): "using (predicate)",
            ("subject", "object"): f"on kept.image = found.image and {pair}",
        }.get(self.finds, f"using (image, {', '.join(self.finds)})")
        return f"{found} select kept.image, kept.number, {1 << self.bit} from kept semi join found {by}"


def _of_rule(bit: int, rule: HealthRule) -> _Mark:
    return _Mark(bit, rule.name, rule.title, rule.advice, rule.query, rule.finds)


_MARKS = (
    *(_of_rule(bit, rule) for bit, rule in enumerate(RULES)),
    _Mark(
        len(RULES),
        "low_agreement",
        "relations that CLIP finds less fitting than half of the contrast texts",
        "Compare them with the image: CLIP's opinion is independent of the tagger's.",
        "select image, number from raw_relations where doubted",
        ("number",),
    ),
    _Mark(
        len(RULES) + 2,
        "low_opinion",
        f"relations that the second opinion finds less probable than {_DOUBTED:.0%}",
        "Compare them with the image: the model that was asked does not know the tagger's confidence.",
        f"select image, number from raw_relations where opinion < {_DOUBTED}",
        ("number",),
    ),
    _Mark(
        len(RULES) + 1,
        "confident_but_rare",
        f"relations of confidence ≥ {_CONFIDENT:.2f} whose triplet occurs at most {_RARE} times",
        "Rare triplets are either valuable or wrong: judge them first.",
        f"""select image, number from kept join (select predicate, subject_category, object_category
            from run.triplets where times <= {_RARE}) using (predicate, subject_category, object_category)
        where confidence >= {_CONFIDENT}::float""",
        ("number",),
    ),
)
_MARK = {mark.key: mark for mark in _MARKS}

_TABLES = (
    f"""create table relations as
    select image, number, subject, object, predicate::run.predicate as predicate, confidence,
        coalesce(confidence, 1)::float as certainty, subject_category::run.category as subject_category,
        object_category::run.category as object_category
    from raw_relations where coalesce(confidence, 1)::float >= {TRAINING_CONFIDENCE}::float""",
    "create view objects as from run.objects",
    "create view images as from raw_images",
    """create table predicates as
    select predicate, lower(trim(predicate::varchar)) as word, times as relations from run.predicates""",
    "create table relations_marks (image int, number int, bit bigint)",
    "create table images_marks (image int, bit bigint)",
)
_FLAGS = (
    """create table run.marks as
    select bit, count(*) as hits from (select bit from relations_marks union all select bit from images_marks)
    group by 1""",
    "create table relation_flags as select image, number, bit_or(bit) as flags from relations_marks group by all",
    "create table image_flags as select image, bit_or(bit) as flags from images_marks group by all",
    f"""create table reasons as
    select image, {WHY_NO_RELATIONS} as why from images where status = 'ok' and relations = 0""",
)
DEFINITION = repr((_MARKS, _TABLES, PLACED, _FLAGS))  # of what is found


def mark_queues(execute: Callable[..., object]) -> None:
    """Make the tables `relation_flags`, `image_flags` and `reasons` from what `sgpipe.view.build` has read.

    Args:
        execute: runs a statement, whose `?` are the further arguments.
    """
    for statement in _TABLES:
        execute(statement)
    prepare_checks(execute, TRAINING_CONFIDENCE)
    for mark in _MARKS:
        execute(mark.statement)
    for statement in _FLAGS:
        execute(statement)


_JUDGED = "(select 1 from judged where judged.image = hit.image and judged.number = hit.number"
_CONDITIONS: dict[str, tuple[Of, str]] = {
    _WITHOUT: ("images", "why is not null"),
    _ERRORS: ("images", "status = 'error'"),
    _NOT_JUDGED: ("relations", f"not exists {_JUDGED})"),
    _CONFLICTS: ("relations", f"exists {_JUDGED} and state = 'conflict')"),
}


def queue_condition(key: str) -> tuple[Of, str, list[Any]]:
    """What the hits of a queue are, and its condition on a row `hit` of their table, with the values of its `?`.

    Raises UserError: there is no such queue.
    """
    if key in _CONDITIONS:
        return *_CONDITIONS[key], []
    if key in _MARK:
        return _MARK[key].of, f"(flags & {1 << _MARK[key].bit}) <> 0", []
    if key.startswith(f"{_WITHOUT}: "):
        return "images", "why = ?", [key.partition(": ")[2]]
    raise UserError(f"queue={single_line(key, 60)}: there is no such queue")


def count_queues(rows: Callable[[str], list[tuple[Any, ...]]], relations: int) -> list[Queue]:
    """The queues that have hits; see `sgpipe.view.search.queues`.

    Args:
        rows: the result of a query over the index.
        relations: how many the run has.
    """
    hits = dict(rows("from run.marks"))
    found = [
        Queue(mark.key, mark.title, hits[1 << mark.bit], mark.advice, mark.of)
        for mark in _MARKS
        if 1 << mark.bit in hits
    ]
    reasons = rows("select why, count(*) from run.images where why is not null group by 1 order by 2 desc, 1")
    if len(reasons) > 1:
        found.append(Queue(_WITHOUT, "images without relations", sum(n for _, n in reasons), "", "images"))
    found += [Queue(f"{_WITHOUT}: {why}", f"images without relations: {why}", n, "", "images") for why, n in reasons]
    [(errors, conflicts, judged)] = rows(
        """select (select count(*) from run.images where status = 'error'),
            count(*) filter (state = 'conflict'), count(*) from judged"""
    )
    last = [
        Queue(_ERRORS, "error rows", errors, "`sgpipe generate --retry-failed` processes them again.", "images"),
        Queue(_CONFLICTS, "relations on which people disagree", conflicts, "", "relations"),
        Queue(_NOT_JUDGED, "relations that nobody has judged", relations - judged, "", "relations"),
    ]
    return [*found, *(queue for queue in last if queue.count)]
