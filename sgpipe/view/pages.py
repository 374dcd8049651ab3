"""What all pages of `sgpipe view` share: state, templates, addresses.

Handlers are plain functions, which Starlette runs in threads. They raise `UserError` (shown with
status 422) or `HTTPException`; `sgpipe.view.app` answers both as a page, or as `{"error": "…"}`
below /api/. Only images of rows are served, decoded and small or of their size, and only from where
the run or `--images` names. Scripts draw the page of an image from plain values, which
`/api/image/…` also answers with.
"""

import json
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePath
from typing import Protocol
from urllib.parse import quote, urlencode

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse

from sgpipe.errors import UserError, format_os_error
from sgpipe.files.image_roots import ImagePlace
from sgpipe.storage.index import Index
from sgpipe.storage.judgements import JudgementLog
from sgpipe.utils.console import single_line
from sgpipe.utils.html import templates
from sgpipe.view.search import Hit

FOLDER = Path(__file__).parent
Params = Iterable[tuple[str, str]]
# between two looks for new shards, at least;
_SECONDS_LOCAL = 2.0
_SECONDS_STORE = 30.0
_TIMES_AS_LONG = 10  # as the last one took: it indexes the run
PLACE = "/{split}/{image_id:path}"


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
        """Let searches know of all judgements in the file.

        Raises:
            UserError: it cannot be read.
        """
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


def place_of(request: Request) -> tuple[str, str]:
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
