"""The gallery of a search, its images, and the page of one image, alone or beside another run.

Only images of rows are served, decoded and small or of their size, and only from where the run or `--images` names.
Scripts draw the page of an image from plain values, which `/api/image/…` also answers with.
"""

import os
import re
import textwrap
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from pydantic_core import to_jsonable_python
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sgpipe.errors import EngineError, StoreError, UserError
from sgpipe.files.image_roots import ImageFile
from sgpipe.images import decode, image_file, is_upright
from sgpipe.records import Box, Record, Relation, deduplicate
from sgpipe.stages.pair import normalise_predicate, told_triplets
from sgpipe.stats.report import Values, make_card
from sgpipe.storage.index import IndexedImage, RecordView, find_image, read_embedded, read_record
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import SCORES
from sgpipe.utils.boxes import iou, xywh_to_xyxy
from sgpipe.utils.console import count, single_line
from sgpipe.view import web
from sgpipe.view.filters import ORDERS, QueryError
from sgpipe.view.search import Filters, Hit, facets, neighbours, queues, search
from sgpipe.viz import arrow_head, colour_of, curve, object_names, polyline

PAGE = 48  # hits
_FACETS = ("predicate", "subject", "object", "triplet", "dataset", "split", "status", "judged", "origin")
Pairs = list[tuple[str, str]]


def gallery(request: Request) -> Response:
    """Return a page of hits; with a query that cannot be understood, the place where it fails."""
    freshness: web.Freshness = request.app.state.freshness
    freshness.look_for_shards()
    freshness.update_judgements()
    viewer = web.viewer_of(request)
    pairs = [(name, value) for name, value in request.query_params.multi_items() if value]
    has = {"clip_score": viewer.index.scored, "vlm_score": viewer.index.has_vlm_scores}
    values: Values = {
        "queues": queues(viewer.index),
        "orders": [order for order in ORDERS if has.get(order, True)],
        "facets": _FACETS,
        "problems": [*viewer.index.problems, *viewer.judgements.problems, *filter(None, [freshness.failure])],
    }
    try:
        filters = Filters.from_params(pairs, viewer.index.vocabulary)
    except QueryError as error:
        text = dict(pairs).get("q", "")
        failed = {"before": text[: error.position], "after": text[error.position :], "message": str(error)}
        others = [pair for pair in pairs if pair[0] not in ("q", "after")]
        return web.render(request, "gallery", {**values, "failed": failed, "state": others, "filters": Filters()})
    hits, after = search(viewer.index, filters, request.query_params.get("after"), PAGE)
    state = filters.to_params()
    values |= {"failed": None, "filters": filters, "state": state, "found": facets(viewer.index, filters)}
    cards = [_card(hit, state) for hit in hits]
    return web.render(request, "gallery", {**values, "cards": cards, "after": after, "toggled": _toggled})


def status(request: Request) -> Response:
    """Return how large the run is by now, and look for new shards."""
    index, freshness = web.viewer_of(request).index, request.app.state.freshness
    freshness.look_for_shards()
    counts = {"images": index.images, "relations": index.relations}
    return JSONResponse({**counts, "problems": [*index.problems, *filter(None, [freshness.failure])]})


def _card(hit: Hit, state: Pairs) -> Values:
    """Return a hit, the page that it leads to, and an arrow between two boxes as polylines of SVG."""
    arrow = head = ""
    if hit.subject_box and hit.object_box and hit.subject != hit.object and any(hit.object_box):
        size = max(hit.width, hit.height)
        first, second = ((x, y, x + w, y + h) for x, y, w, h in (hit.subject_box, hit.object_box))
        points = curve(first, second, size / 12)
        arrow, head = polyline(points), polyline(arrow_head(points, size / 22))
    return {"hit": hit, "url": web.hit_url(hit, state), "arrow": arrow, "head": head}


def _toggled(state: Pairs, params: Pairs) -> str:
    """Return the address with these parameters added, or removed if all are there."""
    if all(pair in state for pair in params):
        return web.gallery_url([pair for pair in state if pair not in params])
    return web.gallery_url([*state, *(pair for pair in params if pair not in state)])


_WIDTHS = ("320", "640")  # of small images, in pixels
_QUALITY = 95
_KEPT = {"Cache-Control": "private, max-age=600"}  # by the browser, in seconds
_AT_ONCE = threading.Semaphore(max(2, os.cpu_count() or 2))  # decoded images, which may be large


def photo(request: Request) -> Response:
    """Return an image as annotated, at most `width` pixels wide (of `_WIDTHS`), or a placeholder that says why not."""
    viewer, (split, image_id) = web.viewer_of(request), web.place_of(request)
    if (row := find_image(viewer.index, split, image_id)) is None:
        raise HTTPException(404, f"the run has no image {single_line(image_id, 80)} in split {single_line(split, 80)}")
    wanted = request.query_params.get("width", "")
    try:
        embedded = read_embedded(viewer.index, split, image_id) if row.embedded and not viewer.images else None
        file, name = image_file(viewer.index.image_roots, split, row.file_name, embedded, viewer.images)
        data = _jpeg(file, name, row, int(wanted) if wanted in _WIDTHS else row.width)
    except (UserError, StoreError, EngineError) as error:  # of the image, or of the shard that holds it
        return _placeholder(row, str(error))
    return Response(data, media_type="image/jpeg", headers=_KEPT)


def _jpeg(file: ImageFile, name: str, row: IndexedImage, width: int) -> bytes:
    """Raises ImageError: the image cannot be opened."""
    with _AT_ONCE:
        image = decode(file, (row.width, row.height), name, upright=is_upright(row.dataset))
        image.thumbnail((width, max(1, round(width * image.height / image.width))), Image.Resampling.LANCZOS)
        data = BytesIO()
        image.save(data, "JPEG", quality=_QUALITY, subsampling=0)  # small things keep their colours
    return data.getvalue()


def _placeholder(row: IndexedImage, reason: str) -> Response:
    """Return a grey image of the annotated shape that says why there is no other."""
    height = min(max(round(320 * row.height / max(row.width, 1)), 120), 640)
    texts = "".join(
        f'<tspan x="160" dy="20">{escape(line)}</tspan>' for line in textwrap.wrap(single_line(reason, 200), 36)
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 {height}" width="320" height="{height}">'
        '<rect width="100%" height="100%" fill="#c9ccd1"/><text y="20" fill="#1b1f24" font-family="sans-serif" '
        f'font-size="14" text-anchor="middle">{texts}</text></svg>'
    )
    return Response(svg, media_type="image/svg+xml", headers={"Cache-Control": "no-store"})


# Where a candidate comes from that no caption states, by the setting `pair.candidates`.
_SOURCES = {
    "prior": "The prior dataset relates these two classes like this (pair.candidates: prior).",
    "marks": "A vision-language model states it of these boxes (pair.candidates: marks).",
    "captions+marks": "A vision-language model states it of these boxes (pair.candidates: captions+marks).",
    "image": "Captions state it of other things, and every pair may carry it (pair.candidates: image).",
}


class Provenance:
    """Where the relations of one image come from, as plain values.

    Attributes:
        statements: the triplets of the record, and those that captions imply (`implied`).
        candidates: the predicates of each pair, by descending confidence, then as in the shard; `own`: it is the
            pair's, and not what an annotation or another pair brought in.
    """

    def __init__(self, record: Record, run: Mapping[str, Any]) -> None:
        """run: the header of the run's manifest, of which the last settings of a pair stage count."""
        parts = (each.get("pair") for each in reversed(Manifest.identities(run)) if isinstance(each, Mapping))
        self._settings: Mapping[str, Any] = next((part for part in parts if isinstance(part, Mapping)), {})
        match = self._settings.get("match")
        triplets = told_triplets(record, match, self._settings.get("loose") is True)
        own = len(record.triplets)
        self.statements = [asdict(each) | {"implied": at >= own} for at, each in enumerate(triplets)]
        self.candidates = _candidates(record)
        self._categories = [box.category for box in record.objects]
        self._captions = len(record.captions)
        self._stated: dict[str, list[int]] = defaultdict(list)  # the numbers of statements, by predicate
        for number, triplet in enumerate(triplets):
            predicate = triplet.predicate if match == "substring" else normalise_predicate(triplet.predicate)
            self._stated[predicate].append(number)

    def stating(self, relation: Relation) -> list[int]:
        """Return the statements with a relation's predicate: those about its two classes, or else about others."""
        return self._about(relation) or self._stated.get(relation.predicate, [])

    def _about(self, relation: Relation) -> list[int]:
        ends = {f"{end}_category": self._categories[getattr(relation, end)] for end in ("subject", "object")}
        return [at for at in self._stated.get(relation.predicate, ()) if ends.items() <= self.statements[at].items()]

    def explain(self, relation: Relation) -> str:
        """One sentence: why the pair has this predicate."""
        if relation.origin == "person":
            return "It was confirmed, changed or added by a person (sgpipe correct)."
        if relation.confidence is None:
            return "It is annotated: it has no confidence."
        own, source = self._about(relation), str(self._settings.get("candidates"))
        candidates = self.candidates[relation.subject, relation.object]
        is_candidate = any(found["own"] and found["predicate"] == relation.predicate for found in candidates)
        if own and source not in ("prior", "marks"):
            stating = len({self.statements[number]["caption"] for number in own})
            how = "Implied" if all(self.statements[number]["implied"] for number in own) else "Stated"
            return f"{how} by {stating} of {count(self._captions, 'caption')} for these two classes."
        if is_candidate and source in _SOURCES and (source != "image" or relation.predicate in self._stated):
            return _SOURCES[source]
        if not is_candidate and self._settings.get("restrict") == "group":
            return "It is a candidate of another pair, and was scored for the whole group (pair.restrict: group)."
        if is_candidate and self._settings.get("known"):
            return "The run that was extended often has it of these two classes (pair.known)."
        return "The run does not say where this predicate comes from."


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


SAME_OBJECT = 0.5  # IoU from which on boxes of a class are the same object
MOST_RELATIONS = 1000  # of an image that a page lists
_IN_GRAPH = 20
_KEY = re.compile(r"([0-9]{1,9})-([0-9]{1,9})-(.*)", re.DOTALL)  # of a relation
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
    found = web.viewer_of(request).index.predicates(request.query_params.get("prefix", ""), _SUGGESTIONS)
    return JSONResponse([{"predicate": predicate, "count": count} for predicate, count in found])


def _values(request: Request) -> Values:
    """Return what the page of an image shows. Status 404: the run does not have it."""
    viewer, params = web.viewer_of(request), request.query_params
    split, image_id = web.place_of(request)
    view = read_record(viewer.index, split, image_id)
    if view is None:
        raise HTTPException(404, f"the run has no image {single_line(image_id, 80)!r} in {single_line(split, 80)!r}")
    key = params.get("relation")
    values = image_values(view, viewer.index.run, key)
    others = [(name, value) for name, value in params.multi_items() if name not in ("relation", "after", "plan")]
    chosen = key if any(relation["key"] == key for relation in values["relations"]) else None
    values |= {"gallery": web.gallery_url(others), "run": viewer.index.fingerprint, "chosen": chosen}
    return values | _neighbours(request) | {"other": _other_values(viewer, view.record, split, image_id)}


def _neighbours(request: Request) -> Values:
    """Return the addresses of the hits before and after the relation in the request's search: `previous` and `next`."""
    index, params, relation = web.viewer_of(request).index, request.query_params, None
    if key := params.get("relation"):
        if not (parts := _KEY.fullmatch(key)):
            raise HTTPException(400, f"not a relation: {single_line(key, 80)}")
        relation = int(parts[1]), int(parts[2]), parts[3]
    filters = Filters.from_params(params.multi_items(), index.vocabulary)
    found = neighbours(index, filters, *web.place_of(request), relation)
    before, after = (hit and web.hit_url(hit, params.multi_items()) for hit in found)
    return {"previous": before, "next": after}


def image_values(view: RecordView, run: Mapping[str, Any], chosen: str | None = None) -> Values:
    """Everything that the page shows of an image of a run (the header of its manifest), as JSON-able values.

    Of `total` relations, the most confident `MOST_RELATIONS` and the one with the key `chosen`.
    """
    record, provenance = view.record, Provenance(view.record, run)
    relations = existing_relations(record)
    shown = _first(relations, MOST_RELATIONS, chosen)
    names = ("split", "image_id", "dataset", "file_name", "width", "height", "status", "error")
    keys = [_key(relation) for relation in record.relations]  # of a repeated relation, the last score counts
    scores = {name: dict(zip(keys, view.scores.get(name) or (), strict=False)) for name in SCORES}

    def values_of(relation: Relation) -> Values:
        pair, key = provenance.candidates[relation.subject, relation.object], _key(relation)
        return {
            "key": key,
            **asdict(relation),
            "rank": next(found["rank"] for found in pair if found["predicate"] == relation.predicate),
            **{name: found.get(key) for name, found in scores.items()},
            "explanation": provenance.explain(relation),
            "stated": provenance.stating(relation),
        }

    image = {name: getattr(record, name) for name in names}
    image |= {"photo": web.photo_url(record.split, record.image_id), "shard": view.image.shard, "row": view.image.row}
    pairs = dict.fromkeys((relation.subject, relation.object) for relation in shown)
    values = {
        "image": image,
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
        "captions": record.captions,
        "statements": provenance.statements,
        "candidates": {f"{pair[0]}-{pair[1]}": provenance.candidates[pair] for pair in pairs},
        "graph": _graph(record, _first(relations, _IN_GRAPH, chosen)),
        "why": view.image.why and f"It has no relations: {view.image.why}.",
    }
    plain: Values = to_jsonable_python(values, inf_nan_mode="null")  # shards that others wrote may hold NaN or infinity
    return plain


def existing_relations(record: Record) -> list[Relation]:
    """Return the record's relations between existing objects, without repetition, the most confident first."""
    objects = range(len(record.objects))
    found = deduplicate(each for each in record.relations if each.subject in objects and each.object in objects)
    return sorted(found, key=lambda each: -1.0 if each.confidence is None else -each.confidence)


def _first(relations: Sequence[Relation], limit: int, chosen: str | None) -> list[Relation]:
    return [each for number, each in enumerate(relations) if number < limit or (chosen and _key(each) == chosen)]


def _key(relation: Relation) -> str:
    return web.relation_key(relation.subject, relation.object, relation.predicate)


def _graph(record: Record, relations: Sequence[Relation]) -> Values:
    card = make_card(record, None, relations)
    for edge in card["edges"]:
        edge |= {end: edge[end]["index"] for end in ("subject", "object")}
        edge["key"] = web.relation_key(edge["subject"], edge["object"], edge["predicate"])
    return {"height": card["graph_height"], "nodes": card["nodes"] if relations else [], "edges": card["edges"]}


def _other_values(viewer: web.Viewer, record: Record, split: str, image_id: str) -> Values | None:
    """Return the image in the other run, and which relations differ; None: there is no other run."""
    if viewer.other is None:
        return None
    title = viewer.other_title
    view = read_record(viewer.other, split, image_id)
    if view is None:
        return {"title": title, "lacks": "It does not have this image."}
    values = image_values(view, viewer.other.run)
    both, here, there = compare_images(
        record.objects, existing_relations(record), view.record.objects, existing_relations(view.record)
    )
    return {
        "title": title,
        "lacks": None,
        **{name: values[name] for name in ("image", "objects", "relations", "total", "why")},
        "both": [[_key(first), _key(second)] for first, second in both],
        "here": [_key(relation) for relation in here],
        "there": [_key(relation) for relation in there],
    }


_PLACE = "/{split}/{image_id:path}"
ROUTES = [
    Route("/", gallery),
    Route("/api/status", status),
    Route(f"/photo{_PLACE}", photo),
    Route(f"/image{_PLACE}", lambda request: web.render(request, "image", {"values": _values(request)})),
    Route(f"/api/image{_PLACE}", lambda request: JSONResponse(_values(request))),
    Route(f"/api/neighbours{_PLACE}", lambda request: JSONResponse(_neighbours(request))),
    Route("/api/predicates", _predicates_answer),
]
