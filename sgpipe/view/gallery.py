"""The gallery: a search with its facets, its histogram of confidence, and a page of hits as cards."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sgpipe.view.filters import QueryError
from sgpipe.view.search import Filters, Hit, facets, queues, search
from sgpipe.view.web import freshness_of, gallery_url, hit_url, render, viewer_of
from sgpipe.viz.draw_relations import arrow_head, curve, polyline

PAGE = 48  # hits
_FACETS = ("predicate", "subject", "object", "triplet", "dataset", "split", "status", "judged", "origin")
_ORDERS = {
    "confidence": "most confident",
    "-confidence": "least confident",
    "rarity": "rare triplets",
    "clip_score": "low CLIP score",
    "vlm_score": "low score by the vision-language model",
    "shuffle": "shuffled",
}
Pairs = list[tuple[str, str]]


def gallery(request: Request) -> Response:
    """Return a page of hits; with a query that cannot be understood, the place where it fails."""
    freshness = freshness_of(request)
    freshness.look_for_shards()
    freshness.update_judgements()
    viewer = viewer_of(request)
    pairs = [(name, value) for name, value in request.query_params.multi_items() if value]
    has = {"clip_score": viewer.index.scored, "vlm_score": viewer.index.has_vlm_scores}
    values: dict[str, Any] = {
        "queues": queues(viewer.index),
        "orders": {order: title for order, title in _ORDERS.items() if has.get(order, True)},
        "facets": _FACETS,
        "problems": [*viewer.index.problems, *viewer.judgements.problems, *filter(None, [freshness.failure])],
    }
    try:
        filters = Filters.from_params(pairs, viewer.index.vocabulary)
    except QueryError as error:
        text = dict(pairs).get("q", "")
        failed = {"before": text[: error.position], "after": text[error.position :], "message": str(error)}
        others = [pair for pair in pairs if pair[0] not in ("q", "after")]
        return render(request, "gallery", {**values, "failed": failed, "state": others, "filters": Filters()})
    page, state = search(viewer.index, filters, request.query_params.get("after"), PAGE), filters.to_params()
    values |= {"failed": None, "filters": filters, "state": state, "found": facets(viewer.index, filters)}
    cards = [_card(hit, state) for hit in page.hits]
    return render(request, "gallery", {**values, "cards": cards, "page": page, "toggled": _toggled})


def status(request: Request) -> Response:
    """Return how large the run is by now; asking makes the server look for new shards."""
    index, freshness = viewer_of(request).index, freshness_of(request)
    freshness.look_for_shards()
    counts = {"images": index.images, "relations": index.relations}
    return JSONResponse({**counts, "problems": [*index.problems, *filter(None, [freshness.failure])]})


def _card(hit: Hit, state: Pairs) -> dict[str, Any]:
    """Return a hit, the page that it leads to, and an arrow between two boxes as polylines of SVG."""
    arrow = head = ""
    if hit.subject_box and hit.object_box and hit.subject != hit.object and any(hit.object_box):
        size = max(hit.width, hit.height)
        first, second = ((x, y, x + w, y + h) for x, y, w, h in (hit.subject_box, hit.object_box))
        points = curve(first, second, size / 12)
        arrow, head = polyline(points), polyline(arrow_head(points, size / 22))
    return {"hit": hit, "url": hit_url(hit, state), "arrow": arrow, "head": head}


def _toggled(state: Pairs, params: Pairs) -> str:
    """Return the address with these parameters added, or removed if all are there."""
    if all(pair in state for pair in params):
        return gallery_url([pair for pair in state if pair not in params])
    return gallery_url([*state, *(pair for pair in params if pair not in state)])


ROUTES = [Route("/", gallery), Route("/api/status", status)]
