"""The Starlette application of `sgpipe view`: the pages of all modules behind one set of checks."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from sgpipe.errors import UserError
from sgpipe.view import image_page, judging
from sgpipe.view.web import FOLDER, Viewer, answer, render


def create_app(viewer: Viewer) -> Starlette:
    """The application over a run."""
    app = Starlette(
        routes=[
            *image_page.routes(),
            *judging.routes(),
            Mount("/static", StaticFiles(directory=FOLDER / "static")),
        ],
        exception_handlers={UserError: _refuse, HTTPException: _refuse},
    )
    app.state.viewer = viewer
    return app


def _refuse(request: Request, error: Exception) -> Response:
    """One line about what is wrong, as a page, or as JSON below /api/."""
    if isinstance(error, HTTPException):
        status, message = error.status_code, str(error.detail)
    else:
        status, message = 422, str(error)
    if request.url.path.startswith("/api/"):
        return answer({"error": message}, status)
    return render(request, "error", {"message": message, "status": status}, status)
