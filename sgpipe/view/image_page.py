"""The page of one image, alone or beside another run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_jsonable_python
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sgpipe.records import Box, Record, Relation, deduplicate
from sgpipe.stats.samples import Values, make_card
from sgpipe.storage.header import RunHeader
from sgpipe.storage.index import RecordView, read_record
from sgpipe.storage.shards import SCORES
from sgpipe.utils.boxes import iou, xywh_to_xyxy
from sgpipe.utils.console import single_line
from sgpipe.view.pages import (
    PLACE,
    Viewer,
    gallery_url,
    hit_url,
    photo_url,
    place_of,
    relation_key,
    render,
    viewer_of,
)
from sgpipe.view.search import Filters, neighbours
from sgpipe.viz import colour_of, object_names

if TYPE_CHECKING:
    from sgpipe.view.provenance import Provenance

_OF_IMAGE = ("split", "image_id", "dataset", "file_name", "width", "height", "status", "error")
SAME_OBJECT = 0.5  # IoU from which on boxes of a class are the same object
MOST_RELATIONS = 1000  # of an image that a page lists
_IN_GRAPH = 20
_KEY = re.compile(r"([0-9]{1,9})-([0-9]{1,9})-(.*)", re.DOTALL)  # of a relation


def compare_images(
    record: Record, other_record: Record
) -> tuple[list[tuple[Relation, Relation]], list[Relation], list[Relation]]:
    """Return `existing_relations` with the same predicate between the same objects in two runs.

    Then those of either run alone. The boxes of the runs may differ.
    """
    counterpart = match_objects(record.objects, other_record.objects)
    unmatched = {
        (relation.subject, relation.object, relation.predicate): relation
        for relation in existing_relations(other_record)
    }
    both = []
    only_first = []
    for relation in existing_relations(record):
        subject = counterpart.get(relation.subject, -1)
        object_ = counterpart.get(relation.object, -1)
        other = unmatched.pop((subject, object_, relation.predicate), None)
        if other is None:
            only_first.append(relation)
        else:
            both.append((relation, other))
    return both, only_first, list(unmatched.values())


def match_objects(first: Sequence[Box], second: Sequence[Box]) -> dict[int, int]:
    """Match boxes of one class one to one, so that their total IoU is the largest.

    Boxes with an IoU below `SAME_OBJECT` do not match.
    """
    from scipy.optimize import linear_sum_assignment

    rows = np.repeat(np.arange(len(first)), len(second))
    columns = np.tile(np.arange(len(second)), len(first))
    overlaps = iou(_corners(first)[rows], _corners(second)[columns])
    overlaps = overlaps.reshape(len(first), len(second))
    classes = np.array([box.category for box in first], object)
    other_classes = np.array([box.category for box in second], object)
    is_match = (classes[:, None] == other_classes) & (overlaps >= SAME_OBJECT)
    overlaps = np.where(is_match, overlaps, 0)
    pairs = np.transpose(linear_sum_assignment(-overlaps)).tolist()
    return {row: column for row, column in pairs if overlaps[row, column]}


def _corners(boxes: Sequence[Box]) -> NDArray[np.float64]:
    return xywh_to_xyxy(np.array([box.bbox for box in boxes], np.float64).reshape(-1, 4))


def _values(request: Request) -> Values:
    """Return what the page of an image shows. Status 404: the run does not have it."""
    viewer = viewer_of(request)
    params = request.query_params
    split, image_id = place_of(request)
    view = read_record(viewer.index, split, image_id)
    if view is None:
        raise HTTPException(
            404, f"the run has no image {single_line(image_id, 80)!r} in {single_line(split, 80)!r}"
        )
    key = params.get("relation")
    values = image_values(view, viewer.index.run, key)
    search = [
        (name, value)
        for name, value in params.multi_items()
        if name not in ("relation", "after", "plan")
    ]
    values["proposed"] = _proposed(viewer, view.record, params.get("plan"))
    listed = (*values["relations"], *values["proposed"])
    is_chosen = any(relation["key"] == key for relation in listed)
    values["gallery"] = gallery_url(search)
    values["run"] = viewer.index.fingerprint
    values["chosen"] = key if is_chosen else None
    values |= _neighbours(request)
    values["other"] = _other_values(viewer, view.record, split, image_id)
    return values


def _proposed(viewer: Viewer, record: Record, plan: str | None) -> list[Values]:
    """Return the relations that a plan of doubts asks about and the record lacks."""
    doubts = viewer.judgements.plans.get(plan or "")
    if doubts is None or doubts.kind != "doubts":
        return []
    present = set(map(relation_key, record.relations))
    proposed = []
    for question in doubts.questions:
        key = relation_key(question)
        is_of_image = (question.split, question.image_id) == (record.split, record.image_id)
        if is_of_image and key not in present:
            relation = {
                "key": key,
                "probability": question.confidence,
                "subject": question.subject,
                "object": question.object,
                "predicate": question.predicate,
            }
            proposed.append(relation)
    return proposed


def _neighbours(request: Request) -> Values:
    """Return the addresses of the hits before and after the relation in the request's search."""
    index = viewer_of(request).index
    params = request.query_params
    relation = None
    key = params.get("relation")
    if key:
        parts = _KEY.fullmatch(key)
        if not parts:
            raise HTTPException(400, f"not a relation: {single_line(key, 80)}")
        relation = int(parts[1]), int(parts[2]), parts[3]
    filters = Filters.from_params(params.multi_items(), index.vocabulary)
    before, after = neighbours(index, filters, *place_of(request), relation)
    search = params.multi_items()
    return {
        "previous": before and hit_url(before, search),
        "next": after and hit_url(after, search),
    }


def image_values(view: RecordView, run: RunHeader, chosen: str | None = None) -> Values:
    """Return everything that the page shows of an image, as JSON-able values.

    Of `total` relations, they are the most confident `MOST_RELATIONS`, and the chosen one.

    Args:
        view: of the image.
        run: the header of the run's manifest.
        chosen: the key of a relation.
    """
    from sgpipe.view.provenance import Provenance

    record = view.record
    provenance = Provenance(record, run)
    relations = existing_relations(record)
    shown = _first(relations, MOST_RELATIONS, chosen)
    image = {name: getattr(record, name) for name in _OF_IMAGE} | {
        "photo": photo_url(record.split, record.image_id),
        "shard": view.image.shard,
        "row": view.image.row,
    }
    pairs = dict.fromkeys((relation.subject, relation.object) for relation in shown)
    values = {
        "image": image,
        "objects": _object_values(record),
        "relations": _relation_values(view, provenance, shown),
        "total": len(relations),
        "captions": record.captions,
        "statements": provenance.statements,
        "candidates": {f"{pair[0]}-{pair[1]}": provenance.candidates[pair] for pair in pairs},
        "graph": _graph(record, _first(relations, _IN_GRAPH, chosen)),
        "why": view.image.why and f"It has no relations: {view.image.why}.",
    }
    # shards that others wrote may hold NaN or infinity
    plain: Values = to_jsonable_python(values, inf_nan_mode="null")
    return plain


def _object_values(record: Record) -> list[Values]:
    names = object_names(record.objects)
    values = []
    for index, (box, name) in enumerate(zip(record.objects, names, strict=True)):
        attributes = dict.fromkeys(attribute.name for attribute in box.attributes)
        values.append(
            {
                "name": name,
                "category": box.category,
                "box": box.bbox,
                "score": box.score,
                "phrase": box.phrase,
                "attributes": list(attributes),
                "colour": colour_of(index),
                "crowd": box.iscrowd,
                "missing": box.is_nothing,
            }
        )
    return values


def _relation_values(
    view: RecordView, provenance: Provenance, relations: Sequence[Relation]
) -> list[Values]:
    # of a repeated relation, the last score counts
    keys = list(map(relation_key, view.record.relations))
    scores = {name: dict(zip(keys, view.scores.get(name) or (), strict=False)) for name in SCORES}
    values = []
    for relation in relations:
        key = relation_key(relation)
        candidates = provenance.candidates[relation.subject, relation.object]
        ranks = {candidate["predicate"]: candidate["rank"] for candidate in candidates}
        values.append(
            {
                "key": key,
                **asdict(relation),
                "rank": ranks[relation.predicate],
                **{name: of_relation.get(key) for name, of_relation in scores.items()},
                "explanation": provenance.explain(relation),
                "stated": provenance.stating(relation),
            }
        )
    return values


def existing_relations(record: Record) -> list[Relation]:
    """Return the record's relations between existing objects, the most confident first.

    A repeated relation is listed once.
    """
    objects = range(len(record.objects))
    relations = deduplicate(
        relation
        for relation in record.relations
        if relation.subject in objects and relation.object in objects
    )
    return sorted(
        relations,
        key=lambda relation: -1.0 if relation.confidence is None else -relation.confidence,
    )


def _first(relations: Sequence[Relation], limit: int, chosen: str | None) -> list[Relation]:
    """Return the first relations, and the one with the key `chosen`."""
    later = [relation for relation in relations[limit:] if relation_key(relation) == chosen]
    return [*relations[:limit], *later]


def _graph(record: Record, relations: Sequence[Relation]) -> Values:
    card = make_card(record, None, relations)
    for edge, relation in zip(card["edges"], relations, strict=True):
        edge["subject"] = relation.subject
        edge["object"] = relation.object
        edge["key"] = relation_key(relation)
    return {
        "height": card["graph_height"],
        "nodes": card["nodes"] if relations else [],
        "edges": card["edges"],
    }


def _other_values(viewer: Viewer, record: Record, split: str, image_id: str) -> Values | None:
    """Return the image in the other run, if there is one, and which relations differ."""
    if viewer.other is None:
        return None
    title = viewer.other_title
    view = read_record(viewer.other, split, image_id)
    if view is None:
        return {"title": title, "lacks": "It does not have this image."}
    values = image_values(view, viewer.other.run)
    both, only_this, only_other = compare_images(record, view.record)
    return {
        "title": title,
        "lacks": None,
        **{name: values[name] for name in ("image", "objects", "relations", "total", "why")},
        "both": [[relation_key(first), relation_key(second)] for first, second in both],
        "here": list(map(relation_key, only_this)),
        "there": list(map(relation_key, only_other)),
    }


ROUTES = [
    Route(f"/image{PLACE}", lambda request: render(request, "image", {"values": _values(request)})),
    Route(f"/api/image{PLACE}", lambda request: JSONResponse(_values(request))),
    Route(f"/api/neighbours{PLACE}", lambda request: JSONResponse(_neighbours(request))),
]
