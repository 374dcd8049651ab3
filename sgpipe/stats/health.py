"""The health checks of a run: `sgpipe.storage.health_rules`, and whether its boxes and captions are what they seem.

Boxes in another form, captions of other images and names of other classes are valid data that every rule passes. Edges
of images and the classes that captions name show them; the first images suffice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sgpipe.records import NO_OBJECT
from sgpipe.sources.vocabulary import packaged_synonyms
from sgpipe.storage.health_rules import RULES, HealthRule, prepare_checks
from sgpipe.storage.index import Database
from sgpipe.utils.boxes import ClassFinder, class_matrix, match_captions

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
    found = {**_box_doubts(database), **_caption_doubts(database)}
    nothing: tuple[int, list[Example]] = (0, [])
    doubts = [(name, title, of, advice, found.get(name, nothing)) for name, title, of, advice in _DOUBTS]
    return [
        *(Check(name, title, n, totals[of], of, advice, examples) for name, title, of, advice, (n, examples) in doubts),
        *(_run(database, rule, totals[rule.of]) for rule in RULES),
    ]


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


_DOUBTS = (
    (
        "clipped_boxes",
        "boxes at the right or lower edge of their images, unusually many",
        "boxes",
        "Are width and height read from corners or from centres, or do the sizes belong to other images? "
        "Run again with `source.boxes=xyxy` or `cxcywh`.",
    ),
    (
        "boxes_in_parts",
        "boxes in the first pixel of their images, as parts of an image read as pixels are",
        "boxes",
        "Run again with `source.boxes=xywhn`, `xyxyn` or `cxcywhn`.",
    ),
    (
        "foreign_captions",
        "captions that seem to belong to other images: few of the classes that they name have boxes",
        "captions",
        "Check the image_id of captions and the category_id of boxes.",
    ),
    (
        "foreign_classes",
        "boxes that seem to have the names of other classes: captions of their images name another",
        "boxes",
        "Check the category_id of boxes against the ids in the list of categories.",
    ),
)
DOUBTS = frozenset(name for name, *_ in _DOUBTS)
_Found = dict[str, tuple[int, list[Example]]]

_IMAGES, _CAPTIONED, _CLASSES = 20_000, 300, 500  # that are examined
_SMALL_IMAGE = 32  # pixels; not all boxes of larger images lie in one pixel
# Of COCO, V-COCO and HICO-DET, 0 to 7% of the boxes touch the right edge, at most twice as many as the left one; read
# as width and height, 47 to 57% of the boxes given by corners do, 14 to 31% of those given by centres.
_RIGHT, _TIMES, _MARGIN = 0.1, 3, 10


def _box_doubts(database: Database) -> _Found:
    [(boxes, left, right, clipped, parts, image)] = database.rows(
        f"""select count(*), count(*) filter (x <= 0.5), count(*) filter (x + w >= width - 0.5),
            count(*) filter (x + w >= width - 0.5 or y + h >= height - 0.5),
            count(*) filter (x + w <= 1.5 and y + h <= 1.5 and greatest(width, height) > {_SMALL_IMAGE}), min(image_id)
        from objects join images using (image)
        where image < {_IMAGES} and category <> '{NO_OBJECT}' and not iscrowd"""
    )
    found: _Found = {}
    if right > _RIGHT * boxes and right > _TIMES * left + _MARGIN:
        text = f"{right / boxes:.0%} touch the right edge, {left / boxes:.0%} the left one"
        found["clipped_boxes"] = (clipped, [Example(image, text)])
    if boxes and parts > 0.9 * boxes:
        found["boxes_in_parts"] = (parts, [Example(image, f"{parts / boxes:.0%} of the boxes")])
    return found


def _caption_doubts(database: Database) -> _Found:
    names = [name for (name,) in database.rows(
        f"""select category::varchar from objects where category <> '{NO_OBJECT}' group by category
        order by count(*) desc, 1 limit {_CLASSES}"""
    )]  # fmt: skip
    rows = database.rows(
        f"""with captioned as (select image, list(distinct caption) as texts from captions where scope = 'image'
            group by image order by image limit {_CAPTIONED})
        select image_id, texts, (select list(distinct category::varchar) from objects o where o.image = captioned.image)
        from captioned join images using (image) order by image"""
    )
    if not names or not rows:
        return {}
    synonyms = {**packaged_synonyms("objects365"), **packaged_synonyms("coco")}
    find = ClassFinder({name: synonyms.get(name, ()) for name in names})
    named = class_matrix([set().union(*map(find, texts)) for _, texts, _ in rows], names)
    boxed = class_matrix([own or () for _, _, own in rows], names)
    match = match_captions(named, boxed)
    if not match.is_chance:
        return {}
    shares = f"of the classes that captions name, {match.same:.0%} have a box in their image"
    if pairs := list(_renamed(named, boxed, names)):
        [(boxes,)] = database.rows("select count(*) from objects")
        return {"foreign_classes": (boxes, [Example(rows[at][0], text) for text, at in pairs[:_EXAMPLES]])}
    [(captions,)] = database.rows("select count(*) from captions")
    text = f"{shares}, and {match.other:.0%} in any other image"
    for step, which in ((1, "before"), (-1, "after")):
        if (shifted := match_captions(named, np.roll(boxed, step, 0))).is_real:
            text = f"{shares}, and {shifted.same:.0%} in the image {which} it"
    return {"foreign_captions": (captions, [Example(rows[0][0], text)])}


def _renamed(named: NDArray[np.bool_], boxed: NDArray[np.bool_], names: list[str]) -> Iterator[tuple[str, int]]:
    """Yield pairs of classes that captions and boxes name in the same images, most frequent first, and an image.

    Nothing, unless the pairs that one half of the images shows fit the captions of the other half.
    """
    half = len(named) // 2
    if not match_captions(named[half:], boxed[half:][:, _partners(named[:half], boxed[:half])]).is_real:
        return
    partners = _partners(named, boxed)
    for at in np.argsort(-named.sum(0), kind="stable").tolist():
        if len(both := np.flatnonzero(named[:, at] & boxed[:, partners[at]])) and partners[at] != at:
            yield f"captions name “{names[at]}” where boxes are “{names[partners[at]]}”", int(both[0])


def _partners(named: NDArray[np.bool_], boxed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the class whose boxes are least by chance in the images whose captions name a class, `[classes]`."""
    both, share = named.T.astype(float) @ boxed, boxed.mean(0)
    expected = named.sum(0)[:, None] * share
    return np.argmax((both - expected) / np.sqrt(expected * (1 - share) + 0.1), axis=1)
