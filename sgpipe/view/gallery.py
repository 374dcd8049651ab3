"""The gallery: a search with its facets, its histogram of confidence, and a page of hits as cards; and their images.

Only images of rows are served, small or as they are, and only from where the run or `--images` names.
"""

from __future__ import annotations

import os
import textwrap
import threading
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from sgpipe.errors import EngineError, StoreError, UserError
from sgpipe.files.image_roots import ImageFile
from sgpipe.images import ImageReference, decode, image_file, is_upright, open_header, read_bytes
from sgpipe.storage.index import IndexedImage, find_image, read_embedded
from sgpipe.utils.console import single_line
from sgpipe.view.filters import QueryError
from sgpipe.view.search import Filters, Hit, facets, queues, search
from sgpipe.view.web import Viewer, freshness_of, gallery_url, hit_url, place_of, render, viewer_of
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


_FAULTS = (UserError, StoreError, EngineError)  # of the image, or of the shard that holds it
WIDTHS = (160, 320, 640, 1280)  # in pixels; others are rounded up
_QUALITY = 80
_SHOWN_BY_BROWSERS = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp"}
_KEPT = {"Cache-Control": "private, max-age=600"}  # by the browser, in seconds
_AT_ONCE = threading.Semaphore(max(2, os.cpu_count() or 2))  # decoded images, which may be large


def thumbnail(request: Request) -> Response:
    """Return an image, at most `width` pixels wide; a placeholder with the reason if it cannot be opened."""
    wanted = request.query_params.get("width", "320")
    if not (wanted.isascii() and wanted.isdigit() and len(wanted) < 6):
        raise HTTPException(400, "width is not a number of pixels")
    width = next((fixed for fixed in WIDTHS if fixed >= int(wanted)), WIDTHS[-1])
    row = _row(request)
    try:
        data = _jpeg(*_file(viewer_of(request), row), row, width)
    except _FAULTS as error:
        return _placeholder(row, str(error))
    return Response(data, media_type="image/jpeg", headers=_KEPT)


def photo(request: Request) -> Response:
    """Return an image in its annotated size and orientation: the file itself, if browsers show it like that."""
    row = _row(request)
    try:
        file, name = _file(viewer_of(request), row)
        kind = _shown_as(file, name, row)
        if kind is None:
            return Response(_jpeg(file, name, row, row.width), media_type="image/jpeg", headers=_KEPT)
        if isinstance(file, Path):
            return FileResponse(file, media_type=kind, headers=_KEPT)
        return Response(read_bytes(file), media_type=kind, headers=_KEPT)
    except _FAULTS as error:
        return _placeholder(row, str(error))


def _row(request: Request) -> IndexedImage:
    split, image_id = place_of(request)
    if (found := find_image(viewer_of(request).index, split, image_id)) is None:
        raise HTTPException(404, f"the run has no image {single_line(image_id, 80)} in split {single_line(split, 80)}")
    return found


def _file(viewer: Viewer, row: IndexedImage) -> tuple[ImageFile, str]:
    """Return the file of an image, and what messages call it."""
    embedded = read_embedded(viewer.index, row.split, row.image_id) if row.embedded and not viewer.images else None
    return image_file(viewer.index.image_roots, row, embedded, viewer.images)


def _jpeg(file: ImageFile, name: str, row: ImageReference, width: int) -> bytes:
    """Return the image as a JPEG, scaled down to at most `width` pixels. Raises ImageError: it cannot be opened."""
    with _AT_ONCE:
        image = decode(file, (row.width, row.height), name, upright=is_upright(row.dataset))
        image.thumbnail((width, max(1, round(width * image.height / image.width))), Image.Resampling.LANCZOS)
        data = BytesIO()
        image.save(data, "JPEG", quality=_QUALITY)
    return data.getvalue()


def _shown_as(file: ImageFile, name: str, row: ImageReference) -> str | None:
    """Return the media type of a file that browsers show in the annotated frame; None: it must be converted."""
    with open_header(file, name) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1  # which browsers would do, annotations may not
        fits = image.size == (row.width, row.height) and not turned
        return _SHOWN_BY_BROWSERS.get(image.format or "") if fits else None


def _placeholder(row: ImageReference, reason: str) -> Response:
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


ROUTES = [
    Route("/", gallery),
    Route("/api/status", status),
    Route("/thumbnail/{split}/{image_id:path}", thumbnail),
    Route("/photo/{split}/{image_id:path}", photo),
]
