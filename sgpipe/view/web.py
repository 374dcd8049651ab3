"""What all pages of `sgpipe view` share: the state, templates, addresses and answers.

A module with pages has a function `routes() -> list[Route]`, which `sgpipe.view.app` mounts. Its handlers are plain
functions `(request: Request) -> Response`, which Starlette runs in threads; one that awaits a body is `async` and
leaves blocking work to `starlette.concurrency.run_in_threadpool`. A handler raises `UserError` (shown with status 422)
or `starlette.exceptions.HTTPException`; `sgpipe.view.app` answers both as a page, or as `{"error": "…"}` below /api/.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import jinja2
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse

from sgpipe.files.image_roots import ImagePlace
from sgpipe.utils import __version__
from sgpipe.utils.console import count, isolated, single_line

if TYPE_CHECKING:
    from sgpipe.storage.judgements import JudgementLog
    from sgpipe.view.index import Index

FOLDER = Path(__file__).parent
Params = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Viewer:
    """What the handlers share; `viewer_of(request)` is it.

    Attributes:
        other: a second run to compare with.
        name: of the person who judges, as the server was told (`--as`).
        read_only: nothing is written into the run: no judgements.
        images: where images are, which takes precedence over those that the run names.
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
        """What the second run is called: its name, or its folder if it has none or that of the first."""
        if self.other is None:
            return ""
        name = str(self.other.run.get("name") or "")
        return PurePath(str(self.other.root)).name if name in ("", self.title) else name


def viewer_of(request: Request) -> Viewer:
    """The state of the application that handles this request."""
    viewer: Viewer = request.app.state.viewer
    return viewer


def render(request: Request, template: str, values: Mapping[str, Any] | None = None, status: int = 200) -> HTMLResponse:
    """A page made from `templates/TEMPLATE.html.jinja`, which extends `base.html.jinja`.

    Every value is escaped. Templates see `viewer`, `params` (the request's query parameters), the functions for
    addresses of this module, and the filters `thousands`, `count`, `isolated`, `single_line` and `json`.
    """
    page = _environment().get_template(f"{template}.html.jinja")
    shared = {"viewer": viewer_of(request), "params": request.query_params, "path": request.url.path}
    return HTMLResponse(page.render({**shared, **(values or {})}), status)


def answer(value: Any, status: int = 200) -> JSONResponse:
    """Strict JSON."""
    return JSONResponse(value, status)


async def posted(request: Request) -> dict[str, Any]:
    """The JSON object in the request's body. Raises HTTPException: 400, it is none."""
    try:
        value = json.loads(await request.body(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not strict JSON") from None
    if not isinstance(value, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def gallery_url(params: Params = (), **changes: str | None) -> str:
    """The gallery with these parameters; `changes` replace parameters of the same name, None removes them."""
    return _with_params("/", [*(pair for pair in params if pair[0] not in changes), *changes.items()])


def judge_url(params: Params = ()) -> str:
    """The page of sampling plans, where one of the search that the parameters hold can be made."""
    return _with_params("/judge", params)


def image_url(split: str, image_id: str, params: Params = (), relation: str | None = None) -> str:
    """The page of an image within the search that the parameters hold; `relation`: the chosen one, by its key."""
    others = [(name, value) for name, value in params if name not in ("relation", "after")]
    return _with_params(f"/image/{_path(split, image_id)}", [*others, ("relation", relation)])


def photo_url(split: str, image_id: str) -> str:
    """The image itself, in its annotated orientation and size."""
    return f"/photo/{_path(split, image_id)}"


def thumbnail_url(split: str, image_id: str, width: int) -> str:
    """The image, at most `width` pixels wide; a placeholder with the reason if it cannot be opened."""
    return _with_params(f"/thumbnail/{_path(split, image_id)}", [("width", str(width))])


def relation_key(subject: int, object_: int, predicate: str) -> str:
    """A relation of an image as one string: "0-3-riding"."""
    return f"{subject}-{object_}-{predicate}"


def parse_relation(key: str) -> tuple[int, int, str]:
    """Subject, object and predicate of a key. Raises HTTPException: 400, it is none."""
    subject, _, rest = key.partition("-")
    object_, dash, predicate = rest.partition("-")
    if not (dash and all(index.isascii() and index.isdigit() and len(index) < 10 for index in (subject, object_))):
        raise HTTPException(400, f"not a relation: {single_line(key, 80)}")
    return int(subject), int(object_), predicate


def _path(split: str, image_id: str) -> str:
    return f"{quote(split, safe='')}/{quote(image_id, safe='/')}"


def _with_params(path: str, params: Iterable[tuple[str, str | None]]) -> str:
    text = urlencode([(name, value) for name, value in params if value is not None])
    return f"{path}?{text}" if text else path


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "thousands": lambda number: f"{number:,}",
        "count": count,
        "isolated": isolated,
        "single_line": single_line,
        "json": lambda value: json.dumps(value, allow_nan=False),  # for attributes: data-boxes="{{ boxes|json }}"
    }
    environment.globals |= {
        "version": __version__,
        "gallery_url": gallery_url,
        "judge_url": judge_url,
        "image_url": image_url,
        "photo_url": photo_url,
        "thumbnail_url": thumbnail_url,
        "relation_key": relation_key,
    }
    return environment
