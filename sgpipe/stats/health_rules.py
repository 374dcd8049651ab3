"""What the checks look for, in SQL: a query gives the `image`, a `text`, and the `number` of labels it stands for."""

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
class Rule:
    """A check: what it looks for, among how many of what, and what to do about it."""

    name: str
    title: str
    of: Literal["relations", "pairs", "boxes", "captions"]
    advice: str
    query: str


def _names(words: tuple[str, ...]) -> str:
    return ", ".join("'" + word.replace("'", "''") + "'" for word in words)


_SAID = "concat_ws(' ', subject_category, predicate, object_category)"
_WORDS = r"regexp_extract_all(lower(caption), '[\p{L}\p{M}\p{N}]+')"

# The kept relations that claim something about places, with the boxes of both ends: left, top, right, bottom.
PLACED = """
    create or replace table placed as
    select kept.image, subject_category, predicate, object_category, claim,
        s.x as s_left, s.y as s_top, s.x + s.w as s_right, s.y + s.h as s_bottom,
        o.x as o_left, o.y as o_top, o.x + o.w as o_right, o.y + o.h as o_bottom
    from kept join claims using (predicate)
    join objects s on s.image = kept.image and s.number = kept.subject
    join objects o on o.image = kept.image and o.number = kept.object
    where sign = 0
"""


def _uneven(name: str, labels: str) -> str:
    """Labels of a name that one dataset has much more often than another."""
    return f"""with counts as (
            select {name} as name, dataset, min(image) as image, count(*) as times
            from {labels} join images using (image)
            where (select count(distinct dataset) from images) > 1 group by all),
        sizes as (select dataset, sum(times) as total from counts group by 1),
        uses as (select names.name, coalesce(times, 0) / total as share
            from sizes cross join (select distinct name from counts) names left join counts
            on counts.dataset = sizes.dataset and counts.name = names.name),
        uneven as (select name, max(share) as high, min(share) as low from uses group by 1
            having high > {_UNEVEN} * low)
        select min(image) as image,
            printf('%s: %.1f %% of one, %.1f %% of another', name, 100 * any_value(high), 100 * any_value(low)) as text,
            sum(times) as number
        from counts join uneven using (name) group by name having number >= {_ENOUGH}"""


RULES = (
    Rule(
        "broken_indices",
        "relations of objects that are not there",
        "relations",
        "The shards were not written by sgpipe, or by one with a fault: make them again.",
        f"select image, {_SAID} as text, 1 as number from kept "
        "where subject_category is null or object_category is null",
    ),
    Rule(
        "repeated_relations",
        "the same relation of the same two objects more than once",
        "relations",
        "Keep the most confident of them; training counts the others twice.",
        f"""select image, {_SAID} as text, number from (
            select image, predicate, count(*) - 1 as number, any_value(subject_category) as subject_category,
                any_value(object_category) as object_category
            from kept group by image, subject, object, predicate having count(*) > 1)""",
    ),
    Rule(
        "self_relations",
        "an object related to itself",
        "relations",
        "Drop them: the model predicts pairs of two objects.",
        f"select image, {_SAID} as text, 1 as number from kept where subject = object",
    ),
    Rule(
        "contradictions",
        "pairs of objects of which both cannot be true, such as left of and right of",
        "pairs",
        "Keep the more confident one of each pair, or raise the threshold of these predicates.",
        f"""select image, string_agg({_SAID}, ' / ' order by subject, predicate) as text, 1 as number
        from kept join claims using (predicate) where sign <> 0 and subject <> object
        group by image, least(subject, object), greatest(subject, object), claim
        having count(distinct case when subject < object then sign else -sign end) > 1""",
    ),
    Rule(
        "impossible_places",
        "relations that the boxes rule out, such as on with the subject below, or inside without overlap",
        "relations",
        "Drop them, or raise the threshold of these predicates.",
        f"""select image, {_SAID} as text, 1 as number from placed where case claim
            when 'upward' then s_top >= o_bottom
            when 'downward' then s_bottom <= o_top
            when 'overlapping' then s_right <= o_left or o_right <= s_left or s_bottom <= o_top or o_bottom <= s_top
            when 'leftward' then s_left >= o_right
            when 'rightward' then s_right <= o_left
            else false end""",
    ),
    Rule(
        "far_apart",
        "touching needed, but the boxes are farther apart than the larger of them is long",
        "relations",
        "Probably another object of the same class is meant: drop them, or use `pair.require_overlap=true`.",
        f"""select image, {_SAID} as text, 1 as number from placed where claim = 'close'
        and greatest(s_left - o_right, o_left - s_right, s_top - o_bottom, o_top - s_bottom)
          > greatest(s_right - s_left, s_bottom - s_top, o_right - o_left, o_bottom - o_top)""",
    ),
    Rule(
        "lifeless_actors",
        "things that do what only people and animals do, such as a skateboard wearing something",
        "relations",
        "Subject and object are probably swapped, or of another pair: drop them, or use `pair.prior`.",
        f"""select image, {_SAID} as text, 1 as number from kept join claims using (predicate)
        where claim = 'alive' and lower(subject_category) in ({_names(LIFELESS)})""",
    ),
    Rule(
        "no_relation",
        "predicates that are no relation: filler words, numbers, whole sentences, class names",
        "relations",
        "Drop these predicates; they come from captions that were not understood.",
        f"""with odd as materialized (
            select predicate from predicates
            left join (select category, count(*) as times from objects group by 1) on category::varchar = predicate
            where word in ({_names(NO_RELATION)})
            or len(string_split(word, ' ')) > {_MANY_PREDICATE_WORDS}
            or not regexp_full_match(word, '[\\p{{L}}\\p{{M}}''’. -]+')
            or times > relations)
        select image, concat('“', predicate, '” in ', {_SAID}) as text, 1 as number
        from kept where predicate in (from odd)""",
    ),
    Rule(
        "dominant_predicate",
        f"one predicate that more than {_DOMINANT:.0%} of the relations have",
        "relations",
        "A model learns to say it always: weight or thin it out in training, or raise its threshold.",
        f"""with counted as (select predicate, count(*) as times from kept group by 1)
        select min(image) as image, predicate as text, count(*) as number
        from kept where predicate in (select predicate from counted
            where times > {_DOMINANT} * (select count(*) from kept) and (select count(*) from kept) >= {_ENOUGH})
        group by predicate""",
    ),
    Rule(
        "uneven_predicates",
        f"predicates that one dataset uses {_UNEVEN} times as often as another",
        "relations",
        "A model learns which dataset it sees: give the datasets weights, or drop these predicates.",
        _uneven("predicate", "kept"),
    ),
    Rule(
        "uneven_classes",
        f"object classes that one dataset has {_UNEVEN} times as often as another",
        "boxes",
        "A model learns which dataset it sees: give the datasets weights, or one name to classes that mean the same.",
        _uneven("category", f"(select * from objects where category <> '{NO_OBJECT}')"),
    ),
    Rule(
        "tiny_boxes",
        f"boxes narrower or lower than {_TINY} pixels",
        "boxes",
        "Nobody can see what they show: leave them out of pairs.",
        f"""select image, concat(category, ' of ', round(w, 1), ' × ', round(h, 1)) as text, 1 as number
        from objects where least(w, h) < {_TINY} and category <> '{NO_OBJECT}'""",
    ),
    Rule(
        "repeated_boxes",
        f"boxes of one class that lie on each other (IoU above {_SAME})",
        "boxes",
        "Drop all but one of them: relations are split among them at random.",
        f"""select image, any_value(a.category) as text, 1 as number from objects a join objects b
        using (image, category) where a.number < b.number and not a.iscrowd and not b.iscrowd
        and greatest(least(a.x + a.w, b.x + b.w) - greatest(a.x, b.x), 0)
          * greatest(least(a.y + a.h, b.y + b.h) - greatest(a.y, b.y), 0)
          > {_SAME} / (1 + {_SAME}) * (a.w * a.h + b.w * b.h)
        group by image, b.number""",
    ),
    Rule(
        "same_captions",
        "captions of one image that differ only by case, articles and punctuation",
        "captions",
        "They bring no new relations: sample with a higher temperature, or fewer samples.",
        r"""select image, concat(min(caption), ' / ', max(caption)) as text, count(*) - 1 as number
        from (select distinct image, scope, boxes, caption from captions)
        group by image, scope, boxes,
            trim(regexp_replace(regexp_replace(lower(caption), '[^\p{L}\p{M}\p{N}]+', ' ', 'g'),
                '\b(a|an|the) ', '', 'g'))
        having count(*) > 1""",
    ),
    Rule(
        "degenerate_captions",
        "captions that repeat themselves, or are one word or a page long",
        "captions",
        "The captioner failed on them: raise `caption.repetition_penalty`, or use another captioner.",
        f"""select image, caption as text, 1 as number from (select *, {_WORDS} as words from captions)
        where len(words) < {_FEW_WORDS} or len(words) > {_MANY_WORDS}
        or (len(words) >= 6 and len(list_distinct(words)) < 0.5 * len(words))
        or list_bool_or(list_transform(words, lambda word, n: word = words[n + 1] and word = words[n + 2]))""",
    ),
)
