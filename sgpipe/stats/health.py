"""Checks that find labels somebody should look at: how many, five examples, and what to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from sgpipe.stats.database import Database
from sgpipe.stats.health_rules import PLACED, RULES, Rule
from sgpipe.stats.health_words import ACTS, AXES, GEOMETRY

_EXAMPLES = 5


@dataclass(frozen=True)
class Example:
    """One label that a check found, in an image."""

    image_id: str
    text: str


@dataclass(frozen=True)
class Check:
    """What one check found: `count` of `total` things of a kind (`of`)."""

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
    """All checks, of relations of at least `threshold`, and of all boxes and captions."""
    database.execute(
        f"create or replace view kept as select * from relations where certainty >= {float(threshold)}::float"
    )
    database.execute("create or replace table axes (axis varchar, sign int, word varchar)")
    database.insert("axes", [(axis, sign, word) for (axis, sign), words in AXES.items() for word in words])
    database.execute("create or replace table geometry (kind varchar, word varchar)")
    database.insert("geometry", [(kind, word) for kind, words in GEOMETRY.items() for word in words])
    database.execute("create or replace table acts (word varchar)")
    database.insert("acts", [(word,) for word in ACTS])
    database.execute(PLACED)
    totals = {name: database.rows(f"select count(*) from {table}")[0][0] for name, table in _TOTALS.items()}
    return [_run(database, rule, totals[rule.of]) for rule in RULES]


_TOTALS = {
    "relations": "kept",
    "pairs": "(select distinct shard, row, subject, object from kept)",
    "boxes": "objects",
    "captions": "captions",
}


def _run(database: Database, rule: Rule, total: int) -> Check:
    rows = database.rows(
        f"""with found as materialized ({rule.query}),
        first as (select * from found order by shard, row, text limit {_EXAMPLES})
        select (select coalesce(sum(number), 0)::bigint from found), image_id, text
        from first join images using (shard, row) order by shard, row, text"""
    )
    count = rows[0][0] if rows else 0
    examples = [Example(image_id, text) for _, image_id, text in rows]
    return Check(rule.name, rule.title, count, total, rule.of, rule.advice, examples)
