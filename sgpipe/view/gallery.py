"""The gallery of a search, and the images that pages show."""

import os
import textwrap
import threading
from html import escape
from io import BytesIO

from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sgpipe.errors import EngineError, StoreError, UserError
from sgpipe.files.image_roots import ImageFile
from sgpipe.images import decode, image_file, is_upright
from sgpipe.stats.samples import Values
from sgpipe.storage.index import IndexedImage, find_image, read_embedded
from sgpipe.utils.console import single_line
from sgpipe.view.filters import ORDERS, QueryError
from sgpipe.view.pages import PLACE, Freshness, gallery_url, hit_url, place_of, render, viewer_of
from sgpipe.view.search import Filters, Hit, facets, queues, search
from sgpipe.viz import arrow_head, curve, polyline

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
_SUGGESTIONS = 20


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
    split, image_id = place_of(request)
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
    """Return an image of a row as JPEG.

    Raises:
        ImageError: the image cannot be opened.
    """
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


def _predicates_answer(request: Request) -> Response:
    """Return the run's predicates that start with `prefix`, the most frequent first."""
    prefix = request.query_params.get("prefix", "")
    predicates = viewer_of(request).index.predicates(prefix, _SUGGESTIONS)
    return JSONResponse([{"predicate": name, "count": number} for name, number in predicates])


ROUTES = [
    Route("/", gallery),
    Route("/api/status", status),
    Route(f"/photo{PLACE}", photo),
    Route("/api/predicates", _predicates_answer),
]
