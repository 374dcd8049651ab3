"""The health checks as SQL. Each row of a query is an `image`, a `text`, and the `number` of problems it stands for.

Columns that say what was found, see `HealthRule.finds`, come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sgpipe.records import NO_OBJECT
from sgpipe.stats.predicate_lexicon import LIFELESS, NO_RELATION

_TINY = 4  # pixels
_SAME = 0.9  # IoU
_FEW_WORDS, _MANY_WORDS, _MANY_PREDICATE_WORDS = 2, 60, 5
_DOMINANT, _UNEVEN, _ENOUGH = 0.4, 10, 50


@dataclass(frozen=True)
class HealthRule:
    """A check: what it finds (`title`), among which things (`of`), and what to do about it.

    finds: the columns that name what a row is about: a relation by `subject`, `object` and `predicate`, a pair by
    `subject` and `object` (in either direction), all relations of a `predicate`, all images with a `category`, or,
    without columns, the image.
    """

    name: str
    title: str
    of: Literal["relations", "pairs", "boxes", "captions"]
    advice: str
    query: str
    finds: tuple[str, ...] = ()


def _names(words: tuple[str, ...]) -> str:
    return ", ".join("'" + word.replace("'", "''") + "'" for word in words)


_TRIPLET = "concat_ws(' ', subject_category, predicate, object_category)"
_RELATION = ("subject", "object", "predicate")
_WORDS = r"regexp_extract_all(lower(caption), '[\p{L}\p{M}\p{N}]+')"

# The relations that claim something about positions, with the boxes of both ends: left, top, right, bottom.
PLACED = """
    create or replace table placed as
    select kept.image, subject, object, subject_category, predicate, object_category, claim,
        s.x as s_left, s.y as s_top, s.x + s.w as s_right, s.y + s.h as s_bottom,
        o.x as o_left, o.y as o_top, o.x + o.w as o_right, o.y + o.h as o_bottom
    from kept join claims using (predicate)
    join objects s on s.image = kept.image and s.number = kept.subject
    join objects o on o.image = kept.image and o.number = kept.object
    where sign = 0
"""


def _uneven(name: str, table: str) -> str:
    """Names that are much more frequent in one dataset than in another."""
    return f"""with counts as (
            select {name} as name, dataset, min(image) as image, count(*) as times
            from {table} join images using (image)
            where (select count(distinct dataset) from images) > 1 group by all),
        sizes as (select dataset, sum(times) as total from counts group by 1),
        uses as (select names.name, coalesce(times, 0) / total as share
            from sizes cross join (select distinct name from counts) names left join counts
            on counts.dataset = sizes.dataset and counts.name = names.name),
        uneven as (select name, max(share) as high, min(share) as low from uses group by 1
            having high > {_UNEVEN} * low)
        select min(image) as image,
            printf('%s: %.1f%% of one, %.1f%% of another', name, 100 * any_value(high), 100 * any_value(low)) as text,
            sum(times) as number, name as {name}
        from counts join uneven using (name) group by name having number >= {_ENOUGH}"""


RULES = (
    HealthRule(
        "broken_indices",
        "relations that refer to missing objects",
        "relations",
        "The shards were not written by sgpipe, or are damaged: regenerate them.",
        f"select image, {_TRIPLET} as text, 1 as number, subject, object, predicate from kept "
        "where subject_category is null or object_category is null",
        _RELATION,
    ),
    HealthRule(
        "repeated_relations",
        "repeated relations of the same two objects",
        "relations",
        "Keep the most confident one; training counts repetitions twice.",
        f"""select image, {_TRIPLET} as text, number, subject, object, predicate from (
            select image, subject, object, predicate, count(*) - 1 as number,
                any_value(subject_category) as subject_category, any_value(object_category) as object_category
            from kept group by image, subject, object, predicate having count(*) > 1)""",
        _RELATION,
    ),
    HealthRule(
        "self_relations",
        "objects related to themselves",
        "relations",
        "Drop them: the model predicts pairs of two objects.",
        f"select image, {_TRIPLET} as text, 1 as number, subject, object, predicate from kept where subject = object",
        _RELATION,
    ),
    HealthRule(
        "contradictions",
        "contradictory relations of two objects, such as left of and right of",
        "pairs",
        "Keep the more confident relation of each pair, or raise the threshold of these predicates.",
        f"""select image, string_agg({_TRIPLET}, ' / ' order by kept.subject, predicate) as text, 1 as number,
            least(kept.subject, kept.object) as subject, greatest(kept.subject, kept.object) as object
        from kept join claims using (predicate) where sign <> 0 and kept.subject <> kept.object
        group by image, least(kept.subject, kept.object), greatest(kept.subject, kept.object), claim
        having count(distinct case when kept.subject < kept.object then sign else -sign end) > 1""",
        ("subject", "object"),
    ),
    HealthRule(
        "impossible_places",
        "relations that contradict the boxes, such as on with the subject below, or inside without overlap",
        "relations",
        "Drop them, or raise the threshold of these predicates.",
        f"""select image, {_TRIPLET} as text, 1 as number, subject, object, predicate from placed where case claim
            when 'upward' then s_top >= o_bottom
            when 'downward' then s_bottom <= o_top
            when 'overlapping' then s_right <= o_left or o_right <= s_left or s_bottom <= o_top or o_bottom <= s_top
            when 'leftward' then s_left >= o_right
            when 'rightward' then s_right <= o_left
            else false end""",
        _RELATION,
    ),
    HealthRule(
        "far_apart",
        "relations that need contact, between boxes farther apart than the larger one is long",
        "relations",
        "Another object of the same class is probably meant: drop them, or use `pair.require_overlap=true`.",
        f"""select image, {_TRIPLET} as text, 1 as number, subject, object, predicate from placed where claim = 'close'
        and greatest(s_left - o_right, o_left - s_right, s_top - o_bottom, o_top - s_bottom)
          > greatest(s_right - s_left, s_bottom - s_top, o_right - o_left, o_bottom - o_top)""",
        _RELATION,
    ),
    HealthRule(
        "lifeless_actors",
        "things that act like people or animals, such as a skateboard wearing something",
        "relations",
        "Subject and object are probably swapped or belong to another pair: drop them, or use `pair.candidates=prior`.",
        f"""select image, {_TRIPLET} as text, 1 as number, subject, object, predicate
        from kept join claims using (predicate)
        where claim = 'alive' and lower(subject_category) in ({_names(LIFELESS)})""",
        _RELATION,
    ),
    HealthRule(
        "no_relation",
        "predicates that express no relation: filler words, numbers, whole sentences, class names",
        "relations",
        "Drop these predicates; they come from captions that were parsed incorrectly.",
        f"""with odd as materialized (
            select predicate from predicates
            left join (select category, count(*) as times from objects group by 1) on category::varchar = predicate
            where word in ({_names(NO_RELATION)})
            or len(string_split(word, ' ')) > {_MANY_PREDICATE_WORDS}
            or not regexp_full_match(word, '[\\p{{L}}\\p{{M}}''’. -]+')
            or times > relations)
        select image, concat('“', predicate, '” in ', {_TRIPLET}) as text, 1 as number, subject, object, predicate
        from kept where predicate in (from odd)""",
        _RELATION,
    ),
    HealthRule(
        "dominant_predicate",
        f"relations with a predicate that makes up more than {_DOMINANT:.0%} of all",
        "relations",
        "A model learns to predict it everywhere: give it less weight in training, or raise its threshold.",
        f"""with counted as (select predicate, count(*) as times from kept group by 1)
        select min(image) as image, predicate as text, count(*) as number, predicate
        from kept where predicate in (select predicate from counted
            where times > {_DOMINANT} * (select count(*) from kept) and (select count(*) from kept) >= {_ENOUGH})
        group by predicate""",
        ("predicate",),
    ),
    HealthRule(
        "uneven_predicates",
        f"relations with a predicate that is {_UNEVEN} times as frequent in one dataset as in another",
        "relations",
        "A model learns to tell the datasets apart: weight the datasets, or drop these predicates.",
        _uneven("predicate", "kept"),
        ("predicate",),
    ),
    HealthRule(
        "uneven_classes",
        f"boxes of a class that is {_UNEVEN} times as frequent in one dataset as in another",
        "boxes",
        "A model learns to tell the datasets apart: weight the datasets, or merge classes with the same meaning.",
        _uneven("category", f"(select * from objects where category <> '{NO_OBJECT}')"),
        ("category",),
    ),
    HealthRule(
        "tiny_boxes",
        f"boxes less than {_TINY} pixels wide or high",
        "boxes",
        "Their contents cannot be recognised: leave them out of pairs.",
        f"""select image, concat(category, ' of ', round(w, 1), ' × ', round(h, 1)) as text, 1 as number
        from objects where least(w, h) < {_TINY} and category <> '{NO_OBJECT}'""",
    ),
    HealthRule(
        "repeated_boxes",
        f"duplicate boxes of the same class (IoU above {_SAME})",
        "boxes",
        "Drop all but one: relations are split among them at random.",
        f"""select image, any_value(a.category) as text, 1 as number from objects a join objects b
        using (image, category) where a.number < b.number and not a.iscrowd and not b.iscrowd
        and greatest(least(a.x + a.w, b.x + b.w) - greatest(a.x, b.x), 0)
          * greatest(least(a.y + a.h, b.y + b.h) - greatest(a.y, b.y), 0)
          > {_SAME} / (1 + {_SAME}) * (a.w * a.h + b.w * b.h)
        group by image, b.number""",
    ),
    HealthRule(
        "same_captions",
        "captions of one image that differ only in case, articles and punctuation",
        "captions",
        "They yield no new relations: raise the sampling temperature, or take fewer samples.",
        r"""select image, concat(min(caption), ' / ', max(caption)) as text, count(*) - 1 as number
        from (select distinct image, scope, boxes, caption from captions)
        group by image, scope, boxes,
            trim(regexp_replace(regexp_replace(lower(caption), '[^\p{L}\p{M}\p{N}]+', ' ', 'g'),
                '\b(a|an|the) ', '', 'g'))
        having count(*) > 1""",
    ),
    HealthRule(
        "degenerate_captions",
        "captions that repeat themselves, are one word, or are very long",
        "captions",
        "The captioner failed: raise `caption.repetition_penalty`, change `caption.temperature` or "
        "`caption.min_tokens`, or use another captioner.",
        f"""select image, caption as text, 1 as number from (select *, {_WORDS} as words from captions)
        where len(words) < {_FEW_WORDS} or len(words) > {_MANY_WORDS}
        or (len(words) >= 6 and len(list_distinct(words)) < 0.5 * len(words))
        or list_bool_or(list_transform(words, lambda word, n: word = words[n + 1] and word = words[n + 2]))""",
    ),
)
