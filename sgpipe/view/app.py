"""The Starlette application of `sgpipe view`: the pages of all modules behind one set of checks."""

from __future__ import annotations

import errno
import sys

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from sgpipe.errors import UserError, format_os_error
from sgpipe.view import gallery, image_page, judging, thumbnails
from sgpipe.view.security import HEADERS, LARGEST_BODY, Access, Guard
from sgpipe.view.web import FOLDER, Freshness, Viewer, json_response, render


def create_app(viewer: Viewer, access: Access) -> Starlette:
    """The application over a run. Handlers find in `request.app.state`: `freshness` and `thumbnails`."""
    app = Starlette(
        routes=[
            *gallery.routes(),
            *image_page.routes(),
            *judging.routes(),
            *thumbnails.routes(),
            Mount("/static", StaticFiles(directory=FOLDER / "static")),
        ],
        middleware=[
            Middleware(Guard, access),
            Middleware(RequestBodyLimitMiddleware, LARGEST_BODY),
        ],
        exception_handlers=dict.fromkeys((UserError, HTTPException, OSError, Exception), _refuse),
    )
    app.state.freshness = Freshness(viewer)
    app.state.thumbnails = thumbnails.ThumbnailCache(viewer.index.cache / "thumbnails")
    return app


def _refuse(request: Request, error: Exception) -> Response:
    """One line about what is wrong, as a page, or as JSON below /api/."""
    status, message = _describe(error)
    is_api = request.url.path.startswith("/api/")
    values = {"message": message, "status": status}
    response = json_response({"error": message}, status) if is_api else render(request, "error", values, status)
    response.headers.update(HEADERS)  # Starlette answers unexpected errors outside of all middleware
    return response


def _describe(error: Exception) -> tuple[int, str]:
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail)
    if isinstance(error, UserError):
        return 422, str(error)
    if isinstance(error, OSError):
        return 507 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 503, format_os_error(error)
    sys.excepthook(type(error), error, error.__traceback__)  # as for the commands: one line, or with --verbose all
    return 500, f"internal error: {type(error).__name__}; the terminal of `sgpipe view` says more"
