"""The page of one image: boxes, relations, scene graph, and why each relation is there, alone or beside another run.

Scripts draw it from plain values, which `/api/image/…` also answers with.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sgpipe.records import Box, Record, Relation, Triplet, deduplicate
from sgpipe.stages.pair import normalise_predicate, split_words, told_triplets
from sgpipe.stats.gallery import make_card
from sgpipe.storage.index import Index, RecordView, read_record
from sgpipe.storage.manifest import Manifest
from sgpipe.utils.boxes import iou, xywh_to_xyxy
from sgpipe.utils.console import count, single_line
from sgpipe.view.search import Filters, neighbours
from sgpipe.view.web import (
    Viewer,
    gallery_url,
    hit_url,
    parse_relation,
    photo_url,
    place_of,
    relation_key,
    render,
    viewer_of,
)
from sgpipe.viz.draw_relations import colour_of, object_names

Values: TypeAlias = dict[str, Any]
Match: TypeAlias = Literal["none", "same name", "other form", "head noun", "synonym", "substring"]


@dataclass(frozen=True)
class PairSettings:
    """Settings of the pair stage, as far as the run says; the format of `imported` files; and the `threshold` that the
    tagger's relations are above, if nothing removed relations since."""

    candidates: str | None = None
    match: str | None = None
    restrict: str | None = None
    threshold: float | None = None
    imported: str | None = None
    known: int | None = None
    loose: bool = False

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> PairSettings:
        """Read the header of a run's manifest. A run made from others has the settings of the last that says."""
        found = cls()
        for identity in (each or {} for each in Manifest.identities(run)):
            parts = (identity.get(name) for name in ("pair", "tag"))
            pair, tag = (part if isinstance(part, Mapping) else {} for part in parts)  # others may have changed it
            if pair or tag:
                kept = None if tag.get("calibration") else tag.get("threshold")  # with one, it is a probability
                names = ("candidates", "match", "restrict", "known")
                settings: dict[str, Any] = {name: pair.get(name) for name in names}
                found = cls(**settings, threshold=kept, loose=pair.get("loose") is True)
            elif "import" in identity:
                found = cls(imported=str(identity["import"]))
            elif "scored" not in identity:
                found = replace(found, threshold=None)
        return found


class Provenance:
    """Where the relations of one image come from, as plain values.

    Attributes:
        statements: one for each triplet of the record, and for what captions imply: the number of the `caption`,
            `subject` and `object` (the phrase, its head noun, and how it met the class of a box), and `predicate`.
        candidates: the predicates of each pair, by descending confidence, then as in the shard; `own`: it is the
            pair's, and not what an annotation or another pair brought in.
    """

    def __init__(self, record: Record, run: Mapping[str, Any]) -> None:
        """run: the header of the run's manifest."""
        self.settings = PairSettings.of(run)
        substring = self.settings.match == "substring"
        triplets = told_triplets(record, self.settings.match, self.settings.loose)
        own = len(record.triplets)
        self.statements = [_statement(each, substring, at >= own) for at, each in enumerate(triplets)]
        self.candidates = _candidates(record)
        self._categories = [box.category for box in record.objects]
        self._captions = len(record.captions)
        self._stated: dict[str, list[int]] = defaultdict(list)  # the numbers of statements, by predicate
        for number, triplet in enumerate(triplets):
            self._stated[triplet.predicate if substring else normalise_predicate(triplet.predicate)].append(number)

    def stating(self, relation: Relation) -> tuple[list[int], list[int]]:
        """Return the statements with a relation's predicate: about its two classes, and about others."""
        classes = [self._categories[index] for index in (relation.subject, relation.object)]
        found: tuple[list[int], list[int]] = ([], [])
        for number in self._stated.get(relation.predicate, ()):
            own = [self.statements[number][end]["category"] for end in ("subject", "object")] == classes
            found[not own].append(number)
        return found

    def explain(self, relation: Relation) -> str:
        """One sentence: why the pair has this predicate."""
        if relation.origin == "person":
            return "It was confirmed, changed or added by a person (sgpipe correct)."
        if relation.confidence is None:
            return "It is annotated: it has no confidence."
        own, others = self.stating(relation)
        candidates = self.candidates[relation.subject, relation.object]
        is_candidate = any(found["own"] and found["predicate"] == relation.predicate for found in candidates)
        if is_candidate and self.settings.candidates == "prior":
            return "The prior dataset relates these two classes like this (pair.candidates: prior)."
        if is_candidate and self.settings.candidates in ("marks", *([] if own else ["captions+marks"])):
            return f"A vision-language model states it of these boxes (pair.candidates: {self.settings.candidates})."
        if own:
            return f"{self._captions_of(own)} it of these two classes."
        if is_candidate and others and self.settings.candidates in (None, "image"):
            said = self._captions_of(others)
            return f"{said} it of other things, and every pair may carry it (pair.candidates: image)."
        if not is_candidate and self.settings.restrict == "group":
            return "It is a candidate of another pair, and was scored for the whole group (pair.restrict: group)."
        if is_candidate and self.settings.known:
            return "The run that was extended often has it of these two classes (pair.known)."
        if self.settings.imported:
            return "It was imported with its confidence; no caption led to it."
        return "The run does not say where this predicate comes from."

    def _captions_of(self, statements: list[int]) -> str:
        """Return how many captions make these statements, as the beginning of a sentence."""
        stating = len({self.statements[number]["caption"] for number in statements})
        implied = all(self.statements[number]["implied"] for number in statements)
        one, many = ("implies", "imply") if implied else ("states", "state")
        return f"{stating} of {count(self._captions, 'caption')} {one if stating == 1 else many}"


def _statement(triplet: Triplet, substring: bool, implied: bool) -> Values:
    def end(phrase: str, head: str, category: str | None) -> Values:
        how = how_matched(phrase, head, category, substring)
        return {"phrase": phrase, "head": head, "category": category, "match": how}

    return {
        "caption": triplet.caption,
        "implied": implied,
        "subject": end(triplet.subject, triplet.subject_head, triplet.subject_category),
        "predicate": triplet.predicate,
        "lemma": triplet.predicate_lemma,
        "object": end(triplet.object, triplet.object_head, triplet.object_category),
    }


def _candidates(record: Record) -> dict[tuple[int, int], list[Values]]:
    own = {(pair.subject, pair.object): dict.fromkeys(pair.predicates) for pair in record.pairs}
    scores: dict[tuple[int, int], dict[str, float | None]] = {}
    for relation in deduplicate(record.relations):
        scores.setdefault((relation.subject, relation.object), {})[relation.predicate] = relation.confidence
    found = {}
    for pair in dict.fromkeys((*own, *scores)):
        texts, related = own.get(pair, {}), scores.get(pair, {})
        ordered = sorted(related, key=lambda text: 1.0 if (score := related[text]) is None else -score)
        ranks = {text: rank for rank, text in enumerate(ordered, 1) if related[text] is not None}
        found[pair] = [
            {"predicate": text, "confidence": related.get(text), "rank": ranks.get(text)}
            | {"relation": text in related, "own": text in texts}
            for text in dict.fromkeys((*ordered, *texts))
        ]
    return found


def how_matched(phrase: str, head: str, category: str | None, substring: bool = False) -> Match:
    """Return how a noun phrase with a (singular) head met a class; `substring`: by `pair.match: substring`."""
    if category is None:
        return "none"
    words, name, noun = split_words(phrase), split_words(category), split_words(head)
    if words == name:
        return "same name"
    if substring:
        return "substring" if category.lower() in phrase.lower() else "synonym"
    both = (words, [*words[:-1], *noun[-1:]])
    if any(_is_form("".join(each), "".join(name)) for each in both):
        return "other form"
    if any(_is_form("".join(each[-len(name) :]), "".join(name)) for each in both):
        return "head noun"
    return "synonym"


def _is_form(word: str, noun: str) -> bool:
    """Return whether one word is the other, or its regular plural."""
    short, long = sorted((word, noun), key=len)
    return long in (short, f"{short}s", f"{short}es")


SAME_OBJECT = 0.5  # IoU from which on boxes of a class are the same object
MOST_RELATIONS = 1000  # of an image that a page lists
_IN_GRAPH = 20
_SUGGESTIONS = 20


def compare_images(
    objects: Sequence[Box], relations: Sequence[Relation], others: Sequence[Box], other_relations: Sequence[Relation]
) -> tuple[list[tuple[Relation, Relation]], list[Relation], list[Relation]]:
    """Return relations with the same predicate between the same objects in two runs, and those of either run alone.

    Relations are without repetition, between existing objects; the boxes of the runs may differ.
    """
    same = match_objects(objects, others)
    waiting = {(found.subject, found.object, found.predicate): found for found in other_relations}
    both, here = [], []
    for relation in relations:
        other = waiting.pop((same.get(relation.subject, -1), same.get(relation.object, -1), relation.predicate), None)
        if other is None:
            here.append(relation)
        else:
            both.append((relation, other))
    return both, here, list(waiting.values())


def match_objects(first: Sequence[Box], second: Sequence[Box]) -> dict[int, int]:
    """Return the one-to-one match of the largest total IoU of boxes with one class and an IoU of `SAME_OBJECT`."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = (index.ravel() for index in np.indices((len(first), len(second))))
    sides = (np.array([box.bbox for box in boxes], np.float64).reshape(-1, 4) for boxes in (first, second))
    corners = [xywh_to_xyxy(each) for each in sides]
    overlaps = iou(corners[0][rows], corners[1][columns]).reshape(len(first), len(second))
    same = np.array([[a.category == b.category for b in second] for a in first], bool).reshape(overlaps.shape)
    overlaps = np.where(same & (overlaps >= SAME_OBJECT), overlaps, 0)
    pairs = np.transpose(linear_sum_assignment(-overlaps)).tolist()
    return {row: column for row, column in pairs if overlaps[row, column]}


def _predicates_answer(request: Request) -> Response:
    """Return the run's predicates that start with `prefix`, the most frequent first: `[{"predicate", "count"}]`."""
    found = viewer_of(request).index.predicates(request.query_params.get("prefix", ""), _SUGGESTIONS)
    return JSONResponse([{"predicate": predicate, "count": count} for predicate, count in found])


def _why(index: Index, split: str, image_id: str) -> str | None:
    [(why,)] = index.rows("select why from run.images where split = ? and image_id = ? limit 1", [split, image_id])
    return None if why is None else f"It has no relations: {why}."


def _values(request: Request) -> Values:
    """Return what the page of an image shows. Status 404: the run does not have it."""
    viewer, params = viewer_of(request), request.query_params
    split, image_id = place_of(request)
    view = read_record(viewer.index, split, image_id)
    if view is None:
        raise HTTPException(404, f"the run has no image {single_line(image_id, 80)!r} in {single_line(split, 80)!r}")
    key = params.get("relation")
    values = image_values(view, viewer.index.run, key, _why(viewer.index, split, image_id))
    others = [(name, value) for name, value in params.multi_items() if name not in ("relation", "after", "plan")]
    return {
        **values,
        **_neighbours(request),
        "gallery": gallery_url(others),
        "run": viewer.index.fingerprint,
        "chosen": key if any(relation["key"] == key for relation in values["relations"]) else None,
        "other": _other_values(viewer, view.record, split, image_id),
    }


def _neighbours(request: Request) -> Values:
    """Return the addresses of the hits before and after the relation in the request's search: `previous` and `next`."""
    index, params = viewer_of(request).index, request.query_params
    filters, key = Filters.from_params(params.multi_items(), index.vocabulary), params.get("relation")
    found = neighbours(index, filters, *place_of(request), parse_relation(key) if key else None)
    before, after = (hit and hit_url(hit, params.multi_items()) for hit in found)
    return {"previous": before, "next": after}


def image_values(view: RecordView, run: Mapping[str, Any], chosen: str | None = None, why: str | None = None) -> Values:
    """Everything that the page shows of an image of a run (the header of its manifest), as JSON-able values.

    Of `total` relations, the most confident `MOST_RELATIONS` and the one with the key `chosen`. `why`: there is none.
    """
    record, provenance = view.record, Provenance(view.record, run)
    relations = existing_relations(record)
    shown = _most_confident(relations, MOST_RELATIONS, chosen)
    names = ("split", "image_id", "dataset", "file_name", "width", "height", "status", "error")
    scores = {  # the last of a repeated relation
        name: {_key(relation): score for relation, score in zip(record.relations, values or [], strict=False)}
        for name, values in (("clip_score", view.clip_score), ("vlm_score", view.vlm_score))
    }

    def values_of(relation: Relation) -> Values:
        pair, key = provenance.candidates[relation.subject, relation.object], _key(relation)
        own, others = provenance.stating(relation)
        return {
            "key": key,
            **asdict(relation),
            "rank": next(found["rank"] for found in pair if found["predicate"] == relation.predicate),
            **{name: found.get(key) for name, found in scores.items()},
            "explanation": provenance.explain(relation),
            "stated": own,
            "elsewhere": others,
        }

    image = {name: getattr(record, name) for name in names}
    pairs = dict.fromkeys((relation.subject, relation.object) for relation in shown)
    values = {
        "image": {**image, "photo": photo_url(record.split, record.image_id), "shard": view.shard, "row": view.row},
        "objects": [
            {
                **{"name": name, "category": box.category, "box": box.bbox, "score": box.score, "phrase": box.phrase},
                "attributes": list(dict.fromkeys(each.name for each in box.attributes)),
                **{"colour": colour_of(index), "crowd": box.iscrowd, "missing": box.is_nothing},
            }
            for index, (box, name) in enumerate(zip(record.objects, object_names(record.objects), strict=True))
        ],
        "relations": [values_of(relation) for relation in shown],
        "total": len(relations),
        "captions": [asdict(caption) for caption in record.captions],
        "statements": provenance.statements,
        "candidates": {f"{pair[0]}-{pair[1]}": provenance.candidates[pair] for pair in pairs},
        "threshold": provenance.settings.threshold,
        "graph": _graph(record, _most_confident(relations, _IN_GRAPH, chosen)),
        "why": why,
    }
    return {name: _finite(value) for name, value in values.items()}


def _finite(value: Any) -> Any:
    """Return a value with None for the numbers that JSON lacks: shards that others wrote may hold NaN or infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def existing_relations(record: Record) -> list[Relation]:
    """Return the record's relations between existing objects, without repetition."""
    objects = range(len(record.objects))
    return deduplicate(found for found in record.relations if found.subject in objects and found.object in objects)


def _most_confident(relations: Sequence[Relation], limit: int, chosen: str | None) -> list[Relation]:
    ordered = enumerate(sorted(relations, key=_doubt))
    return [relation for number, relation in ordered if number < limit or (chosen and _key(relation) == chosen)]


def _doubt(relation: Relation) -> float:
    """Low for confident relations; those without confidence come first."""
    return -1.0 if relation.confidence is None else -relation.confidence


def _key(relation: Relation) -> str:
    return relation_key(relation.subject, relation.object, relation.predicate)


def _graph(record: Record, relations: Sequence[Relation]) -> Values:
    """Return the scene graph, laid out; edges have the keys of their relations."""
    card = make_card(record, None, relations)
    edges = [{**vars(edge), "subject": edge.subject.index, "object": edge.object.index} for edge in card.edges]
    for edge in edges:
        edge["key"] = relation_key(edge["subject"], edge["object"], edge["predicate"])
    return {"height": card.graph_height, "nodes": [vars(node) for node in card.nodes if edges], "edges": edges}


def _other_values(viewer: Viewer, record: Record, split: str, image_id: str) -> Values | None:
    """Return the image in the other run, and which relations differ; None: there is no other run."""
    if viewer.other is None:
        return None
    title = viewer.other_title
    view = read_record(viewer.other, split, image_id)
    if view is None:
        return {"title": title, "lacks": "It does not have this image."}
    values = image_values(view, viewer.other.run, None, _why(viewer.other, split, image_id))
    both, here, there = compare_images(
        record.objects, existing_relations(record), view.record.objects, existing_relations(view.record)
    )
    # Where the confidences of the runs differ most comes first.
    both.sort(key=lambda pair: -abs(_doubt(pair[0]) - _doubt(pair[1])))
    return {
        "title": title,
        "lacks": None,
        **{name: values[name] for name in ("image", "objects", "relations", "total", "why")},
        "both": [[_key(first), _key(second)] for first, second in both],
        "here": [_key(relation) for relation in sorted(here, key=_doubt)],
        "there": [_key(relation) for relation in sorted(there, key=_doubt)],
    }


_PLACE = "/{split}/{image_id:path}"
ROUTES = [
    Route(f"/image{_PLACE}", lambda request: render(request, "image", {"values": _values(request)})),
    Route(f"/api/image{_PLACE}", lambda request: JSONResponse(_values(request))),
    Route(f"/api/neighbours{_PLACE}", lambda request: JSONResponse(_neighbours(request))),
    Route("/api/predicates", _predicates_answer),
]
