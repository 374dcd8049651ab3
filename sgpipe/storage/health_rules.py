"""Relations, boxes and captions that are suspicious: health checks as SQL, and what an index marks
of a run.

Each row of a query is an `image`, a `text`, the `number` of problems it stands for, and the columns
a rule `finds`. A predicate that is not in the lists of words claims nothing about positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sgpipe.records import NO_OBJECT

Marked = Literal["relations", "images"]

_POSTURES = (
    "sitting",
    "standing",
    "walking",
    "running",
    "lying",
    "laying",
    "parked",
    "driving",
    "riding",
)

LEFT = ("left of", "to left of", "to the left of", "on the left of", "on left of", "left to")
RIGHT = ("right of", "to right of", "to the right of", "on the right of", "on right of", "right to")
RIDING = ("riding", "ride", "rides", "riding on", "sitting on", "sits on", "standing on", "stands on", "lying on",
          "laying on", "walking on", "parked on", "mounted on", "resting on")  # fmt: skip
UPON = ("on", "on top of", "atop", "upon", *RIDING)
OVER = ("above", "over", "flying over", "hanging over", "jumping over")
HELD = ("holding", "holds", "hold", "carrying", "carries", "carry", "wearing", "wears", "wear", "eating", "eats",
        "drinking", "riding", "petting", "hugging", "touching")  # fmt: skip

NO_RELATION = (
    "a", "an", "the", "and", "or", "but", "it", "this", "that", "these", "there", "i", "he", "she", "they", "we", "you",
    "is", "are", "be", "was", "were", "been", "not", "no", "very", "one", "two", "some", "other", "s", "t",
)  # fmt: skip

_TINY = 4  # pixels
_SAME = 0.9  # IoU
_FEW_WORDS = 2
_MANY_WORDS = 60
_MANY_PREDICATE_WORDS = 5
_UNEVEN = 10
_ENOUGH = 50

_TRIPLET = "concat_ws(' ', subject_category, predicate, object_category)"
_RELATION = ("subject", "object", "predicate")
_WORDS = r"regexp_extract_all(lower(caption), '[\p{L}\p{M}\p{N}]+')"

# The relations that claim something about positions, with the boxes of both ends: left, top, right,
# bottom.
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

_CONFIDENT = 0.5
_RARE = 3
_DOUBTED = 0.5  # score


def _in_any_posture(*places: str) -> tuple[str, ...]:
    return (*places, *(f"{posture} {place}" for place in places for posture in _POSTURES))


UNDER = _in_any_posture("under", "underneath", "beneath", "below")
INSIDE = ("within", "contained in", *_in_any_posture("inside", "inside of"))

# What predicates claim about their two boxes: on which side of an axis the subject is, the object
# being on the other side, or, without a sign, how they lie. A predicate may claim several.
CLAIMS: dict[tuple[str, int], tuple[str, ...]] = {
    ("left and right", 1): LEFT,
    ("left and right", -1): RIGHT,
    ("above and below", 1): (*UPON, *OVER),
    ("above and below", -1): UNDER,
    ("inside and around", 1): INSIDE,
    ("inside and around", -1): ("containing", "contains", "surrounding"),
    ("front and back", 1): _in_any_posture("in front of"),
    ("front and back", -1): _in_any_posture("behind", "in back of"),
    ("upward", 0): (*UPON, *OVER),
    ("downward", 0): UNDER,
    ("overlapping", 0): INSIDE,
    ("leftward", 0): LEFT,
    ("rightward", 0): RIGHT,
    ("close", 0): tuple(dict.fromkeys((*HELD, *RIDING))),
}


@dataclass(frozen=True)
class HealthRule:
    """A check: what it finds (`title`), among which things (`of`), and what to do about it.

    `finds`: the columns that name what a row is about: a relation by `subject`, `object` and
    `predicate` or by its `number`, a pair by `subject` and `object` (in either direction), all
    images with a `category`, or, without columns, the image.
    """

    name: str
    title: str
    of: Literal["relations", "pairs", "boxes", "captions"]
    advice: str
    query: str
    finds: tuple[str, ...] = ()

    @property
    def marked(self) -> Marked:
        return "images" if self.finds in ((), ("category",)) else "relations"


def quoted(*texts: object) -> str:
    """Return texts as SQL writes them."""
    return ", ".join("'" + str(text).replace("'", "''") + "'" for text in texts)


def _of_relations(
    name: str, title: str, advice: str, where: str, source: str = "kept"
) -> HealthRule:
    query = (
        f"select image, {_TRIPLET} as text, 1 as number, subject, object, predicate from {source}"
        f" where {where}"
    )
    return HealthRule(name, title, "relations", advice, query, _RELATION)


RULES = (
    HealthRule(
        "repeated_relations",
        "repeated relations of the same two objects",
        "relations",
        "Keep the most confident one; training counts repetitions twice.",
        f"""select image, any_value({_TRIPLET}) as text, count(*) - 1 as number, subject, object, predicate
        from kept group by image, subject, object, predicate having count(*) > 1""",
        _RELATION,
    ),
    _of_relations(
        "self_relations",
        "objects related to themselves",
        "Drop them: the model predicts pairs of two objects.",
        "subject = object",
    ),
    HealthRule(
        "contradictions",
        "contradictory relations of two objects, such as left of and right of",
        "pairs",
        "Keep the more confident relation of each pair, or raise the threshold of these"
        " predicates.",
        f"""select image, string_agg({_TRIPLET}, ' / ' order by kept.subject, predicate) as text, 1 as number,
            least(kept.subject, kept.object) as subject, greatest(kept.subject, kept.object) as object
        from kept join claims using (predicate) where sign <> 0 and kept.subject <> kept.object
        group by image, least(kept.subject, kept.object), greatest(kept.subject, kept.object), claim
        having count(distinct case when kept.subject < kept.object then sign else -sign end) > 1""",
        ("subject", "object"),
    ),
    _of_relations(
        "impossible_places",
        "relations that contradict the boxes, such as “on” with the subject below, or “inside”"
        " without overlap",
        "Drop them, or raise the threshold of these predicates.",
        """case claim
            when 'upward' then s_top >= o_bottom
            when 'downward' then s_bottom <= o_top
            when 'overlapping' then s_right <= o_left or o_right <= s_left or s_bottom <= o_top or o_bottom <= s_top
            when 'leftward' then s_left >= o_right
            when 'rightward' then s_right <= o_left
            else false end""",
        "placed",
    ),
    _of_relations(
        "far_apart",
        "relations that need contact, between boxes farther apart than the larger one is long",
        "Another object of the same class is probably meant: drop them, or use"
        " `pair.require_overlap=true`.",
        """claim = 'close' and greatest(s_left - o_right, o_left - s_right, s_top - o_bottom, o_top - s_bottom)
            > greatest(s_right - s_left, s_bottom - s_top, o_right - o_left, o_bottom - o_top)""",
        "placed",
    ),
    HealthRule(
        "no_relation",
        "predicates that express no relation: filler words, numbers, whole sentences, class names",
        "relations",
        "Drop these predicates; they come from captions that were parsed incorrectly.",
        f"""with odd as materialized (
            select predicate from predicates
            left join (select category, count(*) as times from objects group by 1) on category::varchar = predicate
            where word in ({quoted(*NO_RELATION)})
            or len(string_split(word, ' ')) > {_MANY_PREDICATE_WORDS}
            or not regexp_full_match(word, '[\\p{{L}}\\p{{M}}''’. -]+')
            or times > relations)
        select image, concat('“', predicate, '” in ', {_TRIPLET}) as text, 1 as number, subject, object, predicate
        from kept where predicate in (from odd)""",
        _RELATION,
    ),
    HealthRule(
        "uneven_classes",
        f"boxes of a class that is {_UNEVEN} times as frequent in one dataset as in another",
        "boxes",
        "A model learns to tell the datasets apart: weight the datasets, or merge classes with the"
        " same meaning.",
        f"""with counts as (
            select category, dataset, min(image) as image, count(*) as times from objects join images using (image)
            where category <> '{NO_OBJECT}' and (select count(distinct dataset) from images) > 1 group by all),
        sizes as (select dataset, sum(times) as total from counts group by 1),
        uses as (select names.category, coalesce(times, 0) / total as share
            from sizes cross join (select distinct category from counts) names left join counts
            on counts.dataset = sizes.dataset and counts.category = names.category),
        uneven as (select category, max(share) as high, min(share) as low from uses group by 1
            having high > {_UNEVEN} * low)
        select min(image) as image,
            printf('%s: %.1f%% of one, %.1f%% of another', category, 100 * any_value(high), 100 * any_value(low))
            as text, sum(times) as number, category
        from counts join uneven using (category) group by category having number >= {_ENOUGH}""",
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


def prepare_checks(execute: Callable[..., object], threshold: float) -> None:
    """Make what the rules read besides the tables of `Database`; `threshold`: minimum certainty of
    what is checked.
    """
    execute(
        "create or replace view kept as select * from relations where certainty >="
        f" {float(threshold)}::float"
    )
    claims = [(word, claim, sign) for (claim, sign), words in CLAIMS.items() for word in words]
    execute(
        "create or replace table claimed as select unnest(?) as word, unnest(?) as claim, unnest(?)"
        " as sign",
        [*map(list, zip(*claims, strict=True))],
    )
    execute(
        "create or replace view claims as select predicate, claim, sign from predicates join"
        " claimed using (word)"
    )
    execute(PLACED)


# What an index marks: the hits of MARKS[bit] have this bit in their flags.
MARKS = (
    *RULES,
    HealthRule(
        "low_clip_score",
        "relations that CLIP finds less fitting than half of the contrast texts",
        "relations",
        "Compare them with the image: CLIP knows nothing of the tagger's confidence.",
        "select image, number from raw_relations where 2 * (rank - 1) > contrasts",
        ("number",),
    ),
    HealthRule(
        "low_vlm_score",
        f"relations that the vision-language model finds less probable than {_DOUBTED:.0%}",
        "relations",
        "Compare them with the image: the model that was asked does not know the tagger's"
        " confidence.",
        f"select image, number from raw_relations where vlm_score < {_DOUBTED}",
        ("number",),
    ),
    HealthRule(
        "confident_but_rare",
        f"relations of confidence ≥ {_CONFIDENT:.2f} whose triplet occurs at most {_RARE} times",
        "relations",
        "Rare triplets are either valuable or wrong: judge them first.",
        f"""select image, number from kept join (select predicate, subject_category, object_category
            from run.triplets where times <= {_RARE}) using (predicate, subject_category, object_category)
        where confidence >= {_CONFIDENT}::float""",
        ("number",),
    ),
)


def mark_hits(bit: int) -> str:
    """SQL that inserts the marks of all hits of MARKS[bit]; images have no `number`."""
    rule = MARKS[bit]
    insert = f"with found as materialized ({rule.query}) insert into marked"
    if rule.marked == "images":
        source = "objects semi join found using (category)" if rule.finds else "found"
        return f"{insert} select distinct image, null, {1 << bit} from {source}"
    if rule.finds == ("number",):
        return f"{insert} select image, number, {1 << bit} from found"
    by = f"using ({', '.join(('image', *rule.finds))})"
    if rule.finds == ("subject", "object"):
        pair = (
            "least(kept.subject, kept.object) = found.subject and greatest(kept.subject,"
            " kept.object) = found.object"
        )
        by = f"on kept.image = found.image and {pair}"
    return f"{insert} select kept.image, kept.number, {1 << bit} from kept semi join found {by}"
