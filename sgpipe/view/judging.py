"""HTTP handlers for judgements and sampling plans.

| | |
|---|---|
| `POST /api/judgements` | write one answer: `Judgement` without `at`, and, where the server knows them, without `run`, `by`, the classes and the confidence; answered with the line as it is stored |
| `GET /api/judgements?split=&image_id=` | `{"relations": [RelationState.as_json()], "problems": […]}` of an image |
| `POST /api/plans` | draw a sample: `{"kind", "count", "seed", "search"}`; answered with the plan |
| `GET /api/plans` | all plans with their precision |
| `GET /api/plans/{plan}?by=` | one plan: its precision, how many more answers until ±3%, and the next open question |
| `GET /judge` | the page of plans |
"""  # noqa: E501

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def routes() -> list[Route]:
    """The routes of this module."""
    return []


async def judge(request: Request) -> Response:
    """Write an answer into the file of the run before it is acknowledged; one that is there already is not repeated.

    Status 400: it is not a line; 403: read-only; 404: the run has no such relation, plan or answer to undo; 409: it is
    about another run, or undoes somebody else's answer; 507: the disk is full, so nothing is saved; 500: it cannot be
    written for another reason.
    """
    raise NotImplementedError


def judgements_of_image(request: Request) -> Response:
    """What people say about the relations of an image. Status 400: split or image_id is missing."""
    raise NotImplementedError


async def draw_plan(request: Request) -> Response:
    """Draw a stratified sample and write it into the file of judgements. Status: as `judge`."""
    raise NotImplementedError


def plans(request: Request) -> Response:
    """All plans, the latest first, with their precision."""
    raise NotImplementedError


def plan(request: Request) -> Response:
    """One plan: precision with its 95% interval, how many more answers until ±3%, and the next open question.

    Status 404: there is no such plan.
    """
    raise NotImplementedError


def plans_page(request: Request) -> Response:
    """The page on which plans are made and followed."""
    raise NotImplementedError
