"""The gallery: a search with its facets, its histogram of confidence, and a page of hits as cards."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sgpipe.view.filters import QueryError
from sgpipe.view.search import Filters, Hit, facets, queues, search
from sgpipe.view.web import freshness_of, gallery_url, image_url, relation_key, render, viewer_of
from sgpipe.viz.draw_relations import arrow_head, curve, polyline

PAGE = 48  # hits
_FACETS = {
    "predicate": "Predicate",
    "subject": "Subject",
    "object": "Object",
    "triplet": "Triplet",
    "dataset": "Dataset",
    "split": "Split",
    "status": "Status",
    "judged": "Judged",
    "origin": "Origin",
}
_ORDERS = {
    "confidence": "most confident",
    "-confidence": "least confident",
    "rarity": "rare triplets",
    "clip_score": "low CLIP score",
    "vlm_score": "low score by the vision-language model",
    "shuffle": "shuffled",
}
Pairs = list[tuple[str, str]]


def routes() -> list[Route]:
    """Return the routes of the gallery."""
    return [Route("/", gallery), Route("/api/status", status)]


def gallery(request: Request) -> Response:
    """Return a page of hits; with a query that cannot be understood, the place where it fails."""
    freshness = freshness_of(request)
    freshness.look_for_shards()
    freshness.update_judgements()
    viewer = viewer_of(request)
    pairs = [(name, value) for name, value in request.query_params.multi_items() if value]
    worth_a_look = queues(viewer.index)
    has = {"clip_score": viewer.index.scored, "vlm_score": viewer.index.has_vlm_scores}
    values = {
        "queues": worth_a_look,
        "orders": {order: title for order, title in _ORDERS.items() if has.get(order, True)},
        "facet_titles": _FACETS,
        "problems": [*viewer.index.problems, *viewer.judgements.problems, *filter(None, [freshness.failure])],
    }
    try:
        filters = Filters.from_params(pairs, viewer.index.vocabulary)
    except QueryError as error:
        text = dict(pairs).get("q", "")
        failed = {"before": text[: error.position], "after": text[error.position :], "message": str(error)}
        others = [pair for pair in pairs if pair[0] not in ("q", "after")]
        return render(request, "gallery", {**values, "failed": failed, "state": others, "filters": Filters()})
    page = search(viewer.index, filters, request.query_params.get("after"), PAGE)
    found = facets(viewer.index, filters)
    state = filters.to_params()
    shown = {
        "failed": None,
        "filters": filters,
        "state": state,
        "found": found,
        "cards": [_card(hit, state) for hit in page.hits],
        "page": page,
        "toggled": _toggled,
    }
    return render(request, "gallery", {**values, **shown})


def status(request: Request) -> Response:
    """Return how large the run is by now; asking makes the server look for new shards."""
    index, freshness = viewer_of(request).index, freshness_of(request)
    freshness.look_for_shards()
    counts = {"images": index.images, "relations": index.relations}
    return JSONResponse({**counts, "problems": [*index.problems, *filter(None, [freshness.failure])]})


def _card(hit: Hit, state: Pairs) -> dict[str, Any]:
    """Return a hit, the page that it leads to, and its drawing: boxes, and an arrow between two boxes as SVG has
    polylines.
    """
    key = None
    if hit.subject is not None and hit.object is not None and hit.predicate is not None:
        key = relation_key(hit.subject, hit.object, hit.predicate)
    arrow = head = ""
    if hit.subject_box and hit.object_box and hit.subject != hit.object and any(hit.object_box):
        size = max(hit.width, hit.height)
        first, second = ((x, y, x + w, y + h) for x, y, w, h in (hit.subject_box, hit.object_box))
        points = curve(first, second, size / 12)
        arrow, head = polyline(points), polyline(arrow_head(points, size / 22))
    return {"hit": hit, "url": image_url(hit.split, hit.image_id, state, key), "arrow": arrow, "head": head}


def _toggled(state: Pairs, params: Pairs) -> str:
    """Return the address with these parameters added, or removed if all are there."""
    if all(pair in state for pair in params):
        return gallery_url([pair for pair in state if pair not in params])
    return gallery_url([*state, *(pair for pair in params if pair not in state)])
