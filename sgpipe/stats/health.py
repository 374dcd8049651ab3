"""Health checks: each finds suspicious relations, boxes or captions, with a count, examples and advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sgpipe.stats.health_rules import PLACED, RULES, HealthRule
from sgpipe.stats.predicate_lexicon import ACTS, AXES, GEOMETRY
from sgpipe.storage.database import Database

_EXAMPLES = 5


@dataclass(frozen=True)
class Example:
    """One of the things that a check found, and its image."""

    image_id: str
    text: str


@dataclass(frozen=True)
class Check:
    """The result of a check: it found `count` of `total` relations, pairs, boxes or captions (`of`)."""

    name: str
    title: str
    count: int
    total: int
    of: str
    advice: str
    examples: list[Example] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.count / self.total if self.total else 0.0


def check_health(database: Database, threshold: float) -> list[Check]:
    """Run all checks on the relations of at least `threshold` and on all boxes and captions."""
    prepare_checks(database.execute, threshold)
    sources = {
        "relations": "kept",
        "pairs": f"related_pairs where certainty >= {float(threshold)}::float",
        "boxes": "objects",
        "captions": "captions",
    }
    totals = {name: database.rows(f"select count(*) from {source}")[0][0] for name, source in sources.items()}
    return [_run(database, rule, totals[rule.of]) for rule in RULES]


def prepare_checks(execute: Callable[..., object], threshold: float) -> None:
    """Make what the rules read besides the tables of `Database`.

    Args:
        execute: runs a statement, whose `?` are the further arguments.
        threshold: minimum certainty of the relations that are checked.
    """
    execute(f"create or replace view kept as select * from relations where certainty >= {float(threshold)}::float")
    words, claims, signs = zip(*_claims(), strict=True)
    execute(
        "create or replace table claimed as select unnest(?) as word, unnest(?) as claim, unnest(?) as sign",
        list(words), list(claims), list(signs),
    )  # fmt: skip
    execute("create or replace view claims as select predicate, claim, sign from predicates join claimed using (word)")
    execute(PLACED)


def _claims() -> Iterator[tuple[str, str, int]]:
    """Words, what they claim, and on which side of an axis (0 for claims without an axis)."""
    for (axis, sign), words in AXES.items():
        yield from ((word, axis, sign) for word in words)
    for claim, words in {**GEOMETRY, "alive": ACTS}.items():
        yield from ((word, claim, 0) for word in words)


def _run(database: Database, rule: HealthRule, total: int) -> Check:
    rows = database.rows(
        f"""with found as materialized ({rule.query}),
        first as (select * from found order by image, text limit {_EXAMPLES})
        select (select coalesce(sum(number), 0)::bigint from found), image_id, text
        from first join images using (image) order by image, text"""
    )
    count = rows[0][0] if rows else 0
    examples = [Example(image_id, text) for _, image_id, text in rows]
    return Check(rule.name, rule.title, count, total, rule.of, rule.advice, examples)
