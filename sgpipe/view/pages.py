"""The pages of `sgpipe view`: what all share (state, templates, addresses), the gallery of a
search, its images, and the page of one image, alone or beside another run.

Handlers are plain functions, which Starlette runs in threads. They raise `UserError` (shown with
status 422) or `HTTPException`; `sgpipe.view.app` answers both as a page, or as `{"error": "…"}`
below /api/. Only images of rows are served, decoded and small or of their size, and only from where
the run or `--images` names. Scripts draw the page of an image from plain values, which
`/api/image/…` also answers with.
"""

import json
import os
import re
import textwrap
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from html import escape
from io import BytesIO
from pathlib import Path, PurePath
from typing import Protocol
from urllib.parse import quote, urlencode

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic_core import to_jsonable_python
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from sgpipe.errors import EngineError, StoreError, UserError, format_os_error
from sgpipe.files.image_roots import ImageFile, ImagePlace
from sgpipe.images import decode, image_file, is_upright
from sgpipe.records import Box, Record, Relation, deduplicate
from sgpipe.stats.report import Values, make_card, templates
from sgpipe.storage.header import RunHeader
from sgpipe.storage.index import (
    Index,
    IndexedImage,
    RecordView,
    find_image,
    read_embedded,
    read_record,
)
from sgpipe.storage.judgements import JudgementLog
from sgpipe.storage.shards import SCORES
from sgpipe.utils.boxes import iou, xywh_to_xyxy
from sgpipe.utils.console import single_line
from sgpipe.view.filters import ORDERS, QueryError
from sgpipe.view.provenance import Provenance
from sgpipe.view.search import Filters, Hit, facets, neighbours, queues, search
from sgpipe.viz import arrow_head, colour_of, curve, object_names, polyline

FOLDER = Path(__file__).parent
Params = Iterable[tuple[str, str]]
# between two looks for new shards, at least;
_SECONDS_LOCAL = 2.0
_SECONDS_STORE = 30.0
_TIMES_AS_LONG = 10  # as the last one took: it indexes the run
PAGE = 48  # hits
_FACETS = (
    "predicate",
    "subject",
    "object",
    "triplet",
    "dataset",
    "split",
    "status",
    "judged",
    "origin",
)
Pairs = list[tuple[str, str]]
_WIDTHS = ("320", "640")  # of small images, in pixels
_QUALITY = 95
_KEPT = {"Cache-Control": "private, max-age=600"}  # by the browser, in seconds
_AT_ONCE = threading.Semaphore(max(2, os.cpu_count() or 2))  # decoded images, which may be large
_OF_IMAGE = ("split", "image_id", "dataset", "file_name", "width", "height", "status", "error")
SAME_OBJECT = 0.5  # IoU from which on boxes of a class are the same object
MOST_RELATIONS = 1000  # of an image that a page lists
_IN_GRAPH = 20
_KEY = re.compile(r"([0-9]{1,9})-([0-9]{1,9})-(.*)", re.DOTALL)  # of a relation
_SUGGESTIONS = 20
_PLACE = "/{split}/{image_id:path}"


class Related(Protocol):
    """A relation, a question, a judgement or a hit: what has two ends and a predicate."""

    @property
    def subject(self) -> int | None: ...

    @property
    def object(self) -> int | None: ...

    @property
    def predicate(self) -> str | None: ...


@dataclass(frozen=True)
class Viewer:
    """What the handlers share. Its `index` is one state of the run, so that all of an answer fits
    together.

    `name`: of the person who judges. `images`: where images are, which counts more than where the
    run says they are.
    """

    title: str
    index: Index
    judgements: JudgementLog
    other: Index | None = None
    name: str = ""
    read_only: bool = False
    images: ImagePlace | None = None

    @property
    def other_title(self) -> str:
        return PurePath(str(self.other.root)).name if self.other else ""


class Freshness:
    """Keeps a viewer up to date with other servers and new shards; `failure`: why the last look
    failed, or empty.
    """

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self.failure = ""
        self._indexed = -1  # version of the judgements
        self._judging = threading.Lock()
        self._looking = threading.Lock()
        self._seconds = _SECONDS_STORE if "://" in str(viewer.index.root) else _SECONDS_LOCAL
        self._next = time.monotonic() + self._seconds  # time of the next look

    def update_judgements(self) -> None:
        """Let searches know of all judgements in the file. Raises UserError: it cannot be read."""
        with self._judging:
            self.viewer.judgements.reload()
            if self.viewer.judgements.version != self._indexed:
                self._judge(self.viewer.index)

    def look_for_shards(self) -> None:
        """Index what was committed since the last look, in the background."""
        if time.monotonic() >= self._next and self._looking.acquire(blocking=False):
            threading.Thread(target=self._look).start()

    def _judge(self, index: Index) -> None:
        self._indexed = self.viewer.judgements.version
        index.set_judged((*state.key, state.state) for state in self.viewer.judgements.current())

    def _look(self) -> None:
        began = time.monotonic()
        try:
            index = self.viewer.index.newer()
            if index:
                with self._judging:
                    self._judge(index)
                    self.viewer = replace(self.viewer, index=index)
            self.failure = ""
        except (UserError, OSError) as error:
            self.failure = format_os_error(error) if isinstance(error, OSError) else str(error)
        finally:
            took = time.monotonic() - began
            self._next = began + took + max(self._seconds, _TIMES_AS_LONG * took)
            self._looking.release()


def viewer_of(request: Request) -> Viewer:
    """Return the state of the application that handles this request, the same until it is
    answered.
    """
    if not hasattr(request.state, "viewer"):
        request.state.viewer = request.app.state.freshness.viewer
    viewer: Viewer = request.state.viewer
    return viewer


def render(
    request: Request, template: str, values: Mapping[str, object], status: int = 200
) -> HTMLResponse:
    """Return a page; its template also sees `viewer`, `params` (of the address), `path` and what
    `_environment` has.
    """
    page = _environment().get_template(f"{template}.html.jinja")
    shared = {
        "viewer": viewer_of(request),
        "params": request.query_params,
        "path": request.url.path,
    }
    return HTMLResponse(page.render({**shared, **values}), status)


def gallery_url(params: Params = (), **changes: str | None) -> str:
    """Return the gallery with these parameters; `changes` replace parameters of the same name, None
    removes them.
    """
    unchanged = [pair for pair in params if pair[0] not in changes]
    return _with_params("/", [*unchanged, *changes.items()])


def image_url(split: str, image_id: str, params: Params = (), relation: str | None = None) -> str:
    """Return the page of an image within a search; `relation`: the key of the chosen one."""
    search = [(name, value) for name, value in params if name not in ("relation", "after")]
    return _with_params(f"/image/{_path(split, image_id)}", [*search, ("relation", relation)])


def hit_url(hit: Hit, params: Params) -> str:
    relation = None if hit.predicate is None else relation_key(hit)
    return image_url(hit.split, hit.image_id, params, relation)


def photo_url(split: str, image_id: str, width: int | None = None) -> str:
    """Return the image in its annotated orientation and size, or `width` pixels wide at most."""
    return _with_params(
        f"/photo/{_path(split, image_id)}", [("width", str(width) if width else None)]
    )


def relation_key(relation: Related) -> str:
    """Return a relation of an image as one string: "0-3-riding"."""
    return f"{relation.subject}-{relation.object}-{relation.predicate}"


def _place(request: Request) -> tuple[str, str]:
    """Return the split and the id of the image that an address names."""
    return request.path_params["split"], request.path_params["image_id"]


def _path(split: str, image_id: str) -> str:
    return f"{quote(split, safe='')}/{quote(image_id, safe='/')}"


def _with_params(path: str, params: Iterable[tuple[str, str | None]]) -> str:
    text = urlencode([(name, value) for name, value in params if value is not None])
    return f"{path}?{text}" if text else path


@cache
def _environment() -> jinja2.Environment:
    environment = templates(jinja2.FileSystemLoader(FOLDER / "templates"))
    environment.filters |= {
        "single_line": single_line,
        "json": lambda value: json.dumps(value, allow_nan=False),  # for attributes of HTML
    }
    environment.globals |= {
        "gallery_url": gallery_url,
        "image_url": image_url,
        "photo_url": photo_url,
        "relation_key": relation_key,
        "with_params": _with_params,
    }
    return environment


def gallery(request: Request) -> Response:
    """Return a page of hits; with a query that cannot be understood, the place where it fails."""
    freshness: Freshness = request.app.state.freshness
    freshness.look_for_shards()
    freshness.update_judgements()
    viewer = viewer_of(request)
    pairs = [(name, value) for name, value in request.query_params.multi_items() if value]
    has = {"clip_score": viewer.index.scored, "vlm_score": viewer.index.has_vlm_scores}
    values: Values = {
        "queues": queues(viewer.index),
        "orders": [order for order in ORDERS if has.get(order, True)],
        "facets": _FACETS,
        "problems": [
            *viewer.index.problems,
            *viewer.judgements.problems,
            *filter(None, [freshness.failure]),
        ],
    }
    try:
        filters = Filters.from_params(pairs, viewer.index.vocabulary)
    except QueryError as error:
        text = dict(pairs).get("q", "")
        failed = {
            "before": text[: error.position],
            "after": text[error.position :],
            "message": str(error),
        }
        values |= {
            "failed": failed,
            "filters": Filters(),
            "state": [pair for pair in pairs if pair[0] not in ("q", "after")],
        }
        return render(request, "gallery", values)
    hits, after = search(viewer.index, filters, request.query_params.get("after"), PAGE)
    state = filters.to_params()
    values |= {
        "failed": None,
        "filters": filters,
        "state": state,
        "found": facets(viewer.index, filters),
        "cards": [_card(hit, state) for hit in hits],
        "after": after,
        "toggled": _toggled,
    }
    return render(request, "gallery", values)


def status(request: Request) -> Response:
    """Return how large the run is by now, and look for new shards."""
    index = viewer_of(request).index
    freshness = request.app.state.freshness
    freshness.look_for_shards()
    counts = {"images": index.images, "relations": index.relations}
    return JSONResponse(
        {**counts, "problems": [*index.problems, *filter(None, [freshness.failure])]}
    )


def _card(hit: Hit, state: Pairs) -> Values:
    """Return a hit, the page that it leads to, and an arrow between two boxes as polylines of
    SVG.
    """
    arrow = ""
    head = ""
    if hit.subject_box and hit.object_box and hit.subject != hit.object and any(hit.object_box):
        size = max(hit.width, hit.height)
        points = curve(_xyxy(hit.subject_box), _xyxy(hit.object_box), size / 12)
        arrow = polyline(points)
        head = polyline(arrow_head(points, size / 22))
    return {"hit": hit, "url": hit_url(hit, state), "arrow": arrow, "head": head}


def _xyxy(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x, y, x + width, y + height


def _toggled(state: Pairs, params: Pairs) -> str:
    """Return the address with these parameters added, or removed if all are there."""
    if set(params).issubset(state):
        return gallery_url([pair for pair in state if pair not in params])
    return gallery_url(dict.fromkeys([*state, *params]))


def photo(request: Request) -> Response:
    """Return an image as annotated, at most `width` pixels wide (of `_WIDTHS`), or a placeholder
    that says why not.
    """
    viewer = viewer_of(request)
    split, image_id = _place(request)
    row = find_image(viewer.index, split, image_id)
    if row is None:
        raise HTTPException(
            404,
            f"the run has no image {single_line(image_id, 80)} in split {single_line(split, 80)}",
        )
    wanted = request.query_params.get("width", "")
    try:
        embedded = None
        if row.embedded and not viewer.images:
            embedded = read_embedded(viewer.index, split, image_id)
        file, name = image_file(
            viewer.index.image_roots, split, row.file_name, embedded, viewer.images
        )
        data = _jpeg(file, name, row, int(wanted) if wanted in _WIDTHS else row.width)
    except (UserError, StoreError, EngineError) as error:  # also of the shard that holds it
        return _placeholder(row, str(error))
    return Response(data, media_type="image/jpeg", headers=_KEPT)


def _jpeg(file: ImageFile, name: str, row: IndexedImage, width: int) -> bytes:
    """Raises ImageError: the image cannot be opened."""
    with _AT_ONCE:
        image = decode(file, (row.width, row.height), name, upright=is_upright(row.dataset))
        image.thumbnail(
            (width, max(1, round(width * image.height / image.width))), Image.Resampling.LANCZOS
        )
        data = BytesIO()
        image.save(data, "JPEG", quality=_QUALITY, subsampling=0)  # small things keep their colours
    return data.getvalue()


def _placeholder(row: IndexedImage, reason: str) -> Response:
    """Return a grey image of the annotated shape that says why there is no other."""
    height = min(max(round(320 * row.height / max(row.width, 1)), 120), 640)
    texts = "".join(
        f'<tspan x="160" dy="20">{escape(line)}</tspan>'
        for line in textwrap.wrap(single_line(reason, 200), 36)
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 {height}" width="320"'
        f' height="{height}"><rect width="100%" height="100%" fill="#c9ccd1"/><text y="20"'
        ' fill="#1b1f24" font-family="sans-serif" font-size="14"'
        f' text-anchor="middle">{texts}</text></svg>'
    )
    return Response(svg, media_type="image/svg+xml", headers={"Cache-Control": "no-store"})


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


def _predicates_answer(request: Request) -> Response:
    """Return the run's predicates that start with `prefix`, the most frequent first."""
    prefix = request.query_params.get("prefix", "")
    predicates = viewer_of(request).index.predicates(prefix, _SUGGESTIONS)
    return JSONResponse([{"predicate": name, "count": number} for name, number in predicates])


def _values(request: Request) -> Values:
    """Return what the page of an image shows. Status 404: the run does not have it."""
    viewer = viewer_of(request)
    params = request.query_params
    split, image_id = _place(request)
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
    before, after = neighbours(index, filters, *_place(request), relation)
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
    Route("/", gallery),
    Route("/api/status", status),
    Route(f"/photo{_PLACE}", photo),
    Route(
        f"/image{_PLACE}", lambda request: render(request, "image", {"values": _values(request)})
    ),
    Route(f"/api/image{_PLACE}", lambda request: JSONResponse(_values(request))),
    Route(f"/api/neighbours{_PLACE}", lambda request: JSONResponse(_neighbours(request))),
    Route("/api/predicates", _predicates_answer),
]
