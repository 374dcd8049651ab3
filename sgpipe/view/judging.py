"""HTTP handlers for judgements and plans.

- `POST /api/judgements` writes a judgement (the fields of `Judgement` but `at`; an undo needs no
  relation), or with `relations` an answer to a question of a recall plan, and responds with the
  line as it is stored.
- `POST /api/plans` draws a sample: the fields of `_NewPlan`, all but `kind` optional.
- `GET /api/plans/{plan}?by=`: what the plan shows so far, and the person's next open `question`, or
  null. Once all questions of a certificate are answered, whoever asks gets the next round; of a
  recall plan, its figures.
- `GET /api/recall/{plan}?by=&at=`: a question, by default the next open one, without what the run
  says of relations.
"""

import json
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import isfinite
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from sgpipe.errors import UserError
from sgpipe.stats.certificate_progress import measure, rounds_of
from sgpipe.stats.certificate_rounds import extend
from sgpipe.stats.plans import (
    PlanProgress,
    describe_alpha,
    describe_haste,
    draw,
    next_question,
    states_of,
)
from sgpipe.stats.population import settings_for, usual_prediction
from sgpipe.stats.recall import BOXES, draw_recall, measure_recall, questions_left
from sgpipe.storage import judgements as stored
from sgpipe.storage.index import read_record
from sgpipe.utils import LARGEST_SEED
from sgpipe.utils.console import count, single_line
from sgpipe.view.pages import Viewer, image_url, photo_url, relation_key, render, viewer_of
from sgpipe.view.search import Filters, select_relations
from sgpipe.viz import colour_of

Model = TypeVar("Model", bound=BaseModel)
_QUESTIONS = 200
_CONFLICTS_SHOWN = 100


def _writing(
    handler: Callable[[Request, dict[str, Any]], Response],
) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler run in a thread. Status 400: the body is not a JSON object; 409: it is about
    another run.
    """

    async def handle(request: Request) -> Response:
        values = None
        log = viewer_of(request).judgements
        with suppress(ValueError, RecursionError):
            found = json.loads(await request.body())
            values = found if json.dumps(found, allow_nan=False) else None
        if not isinstance(values, dict):
            raise HTTPException(400, "the body is not a JSON object")
        if values.get("run", log.fingerprint) != log.fingerprint:
            raise HTTPException(
                409, "this page is about another run than the server: reload it; nothing is saved"
            )
        return await run_in_threadpool(handler, request, values)

    return handle


def _reloaded(request: Request) -> tuple[Viewer, stored.JudgementLog]:
    """Return the viewer and its judgements, with what other processes appended."""
    viewer = viewer_of(request)
    viewer.judgements.reload()
    return viewer, viewer.judgements


def judge(request: Request, values: dict[str, Any]) -> Response:
    """Write a judgement into the file of the run before it is acknowledged; a repeated one is not
    written again.
    """
    viewer, log = _reloaded(request)
    known = log.lines.get(str(values.get("id")))
    if known:
        return JSONResponse(known.model_dump(mode="json"))
    line: stored.Judgement | stored.BlindAnswer
    who = _who(viewer, str(values.get("by") or ""))
    values |= {"at": stored.utc_now(), "run": log.fingerprint, "by": who}
    if "relations" in values:
        line = _valid(stored.BlindAnswer, values, "an answer")
        plan = log.recall_plans.get(line.plan)
        place = (line.split, line.image_id)
        boxes = (
            next((set(each.boxes) for each in plan.questions if each.place == place), None)
            if plan
            else None
        )
        if boxes is None:
            raise HTTPException(404, "there is no such plan, or it does not ask about this image")
        for each in line.relations or ():
            if each.subject == each.object or not {each.subject, each.object} <= boxes:
                raise HTTPException(400, "a relation is one between two boxes of the question")
            _check_predicate(each.predicate)
    elif values.get("undoes") is None:
        line = _checked(viewer, _valid(stored.Judgement, values, "a judgement"))
    else:
        before = log.lines.get(str(values["undoes"]))
        if not isinstance(before, stored.Judgement) or before.undoes is not None:
            raise HTTPException(404, "there is no such judgement to take back")
        if before.by != who:
            raise HTTPException(
                409, f"this judgement is by {before.by}, who alone can take it back"
            )
        of_relation = {"subject_category", "object_category", "confidence"}
        values |= before.model_dump(
            include={*before.key._asdict(), *of_relation, "plan", "stratum"}
        )
        line = _valid(stored.Judgement, values, "a judgement")
    return JSONResponse(log.append(line).model_dump(mode="json"))


def _valid(kind: type[Model], values: dict[str, Any], what: str) -> Model:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise HTTPException(
            400, f"not {what}: {single_line(stored.describe_invalid(error), 200)}"
        ) from None


def _check_predicate(text: str) -> None:
    if text != single_line(text) or not 0 < len(text) <= 200:
        raise HTTPException(
            400, "a predicate is one line of at most 200 characters without outer spaces"
        )


def _checked(viewer: Viewer, line: stored.Judgement) -> stored.Judgement:
    """Return the line with what the run says of its relation, and its stratum, if its plan asked
    about it.
    """
    view = read_record(viewer.index, line.split, line.image_id)
    if view is None or max(line.subject, line.object) >= len(view.record.objects):
        raise HTTPException(404, "the run has no such image or boxes")
    subject, object_ = (view.record.objects[end] for end in (line.subject, line.object))
    found = [
        each
        for each in view.record.relations
        if (each.subject, each.object, each.predicate) == line.key[2:]
    ]
    action = line.change and line.change.action
    if action != "add" and not found and not viewer.judgements.was_added(line.key):
        raise HTTPException(404, "the run has no such relation")
    if action == "add" and found:
        raise HTTPException(409, "the run has this relation already: judge it instead")
    if action == "add" and (line.subject == line.object or subject.is_nothing):
        raise HTTPException(400, "a relation needs a subject and another object")
    if action == "swap" and object_.is_nothing:
        raise HTTPException(400, "a relation without an object cannot be swapped")
    if (
        line.change
        and (new := line.predicate if action == "add" else line.change.predicate) is not None
    ):
        _check_predicate(new)
    plan = _plan(viewer, line.plan) if line.plan else None
    strata = {
        each.key: each.stratum for each in reversed(plan.questions if plan else [])
    }  # of repeated, the first
    confidences = [
        each.confidence
        for each in found
        if each.confidence is not None and isfinite(each.confidence)
    ]
    known = {
        "plan": plan.plan if plan and line.key in strata else None,
        "stratum": strata.get(line.key),
        "subject_category": subject.category,
        "object_category": object_.category,
        "confidence": max(confidences, default=None),
    }
    return line.model_copy(update=known)


def judgements_of_image(request: Request) -> Response:
    """Return what people say about the relations of the image `image_id` of a `split`."""
    params, (_, log) = request.query_params, _reloaded(request)
    states = log.state(params.get("split", ""), params.get("image_id", ""))
    return JSONResponse(
        {"relations": [state.as_json() for state in states], "problems": log.problems}
    )


class _NewPlan(BaseModel):
    """What a page says about a plan that is to be made; `search`: the parameters of a search, as in
    its URL.
    """

    model_config = ConfigDict(extra="forbid", strict=True, regex_engine="python-re")

    kind: stored.Kind | Literal["recall"]
    id: str = Field(
        default_factory=lambda: uuid.uuid4().hex, pattern=r"^(?!certificate-)[\w.:-]{1,64}$"
    )
    count: int = _QUESTIONS
    precision: float = 0.95
    by_predicate: bool = False
    boxes: int = BOXES
    seed: int = Field(default_factory=lambda: random.randrange(2**31), ge=0, le=LARGEST_SEED)
    search: str = Field("", max_length=10_000)
    by: str = Field("", max_length=200)
    run: str = ""


def draw_plan(request: Request, values: dict[str, Any]) -> Response:
    """Draw a stratified sample and write it into the file of judgements."""
    viewer, log = _reloaded(request)
    wanted = _valid(_NewPlan, values, "a plan")
    who = _who(viewer, wanted.by)
    if wanted.kind == "certificate":
        by = "predicate" if wanted.by_predicate else None
        plan = extend(
            viewer.index, settings_for(viewer.index, precision=wanted.precision, by=by), log, who
        )
        if plan is None:
            raise HTTPException(400, "there is nothing left to ask")
        return JSONResponse(_summary(plan), 201)
    common: dict[str, Any] = {
        "plan": wanted.id,
        "at": stored.utc_now(),
        "by": who,
        "run": log.fingerprint,
    }
    common |= {"seed": wanted.seed, "kind": wanted.kind}
    existing = log.recall_plans.get(wanted.id) or log.plans.get(wanted.id)
    if existing:
        if existing.kind != wanted.kind:
            raise HTTPException(
                409, f"{wanted.id} is a plan of another kind ({existing.kind}): give another id"
            )
        return JSONResponse(_summary(existing), 201)
    made: stored.RecallPlan | stored.SamplingPlan
    if wanted.kind == "recall":
        images, asked = draw_recall(viewer.index.rows, wanted.count, wanted.boxes, wanted.seed)
        made = stored.RecallPlan(**common, images=images, questions=asked)
    else:
        search = wanted.search if wanted.kind == "search" else None
        filters = Filters.from_params(parse_qsl(search or ""), viewer.index.vocabulary)
        request.app.state.freshness.update_judgements()
        select, parameters = select_relations(viewer.index, filters)
        strata, questions = draw(
            viewer.index.rows, select, parameters, wanted.kind, wanted.count, wanted.seed
        )
        made = stored.SamplingPlan(**common, search=search, strata=strata, questions=questions)
    return JSONResponse(_summary(log.append(made)), 201)


def _summary(plan: Any) -> dict[str, Any]:
    return plan.model_dump(mode="json", exclude={"questions"})


def plan_progress(request: Request) -> Response:
    """Return a plan's precision, how many more judgements it takes until ±3%, and the next open
    question.
    """
    (viewer, log), name = _reloaded(request), request.path_params["plan"]
    recall = log.recall_plans.get(name)
    if recall:
        left = questions_left(recall, log, _asker(request))
        if (
            left and not viewer.read_only
        ):  # figures would tell what the run has of what was just named
            whole = len(recall.questions)
            said = (
                f"{whole - len(left):,} of {count(whole, 'question')} answered; figures follow the"
                " last one."
            )
            groups = [{"share": 1 - len(left) / whole, "lines": [said]}]
        else:
            groups = measure_recall(recall, log, viewer.index.rows).as_groups()
        return JSONResponse(
            {"plan": name, "groups": groups, "open": len(left), "question": bool(left)}
        )
    plan, question = _asked(request)
    common = {
        "about_answers": _about_answers(log, plan),
        "question": question and question._asdict(),
    }
    if plan.certificate:
        groups = _groups(viewer, plan)
        return JSONResponse(
            {
                "plan": plan.plan,
                "groups": groups,
                "open": sum(own["open"] for own in groups),
                **common,
            }
        )
    return JSONResponse(_summary(plan) | PlanProgress(plan, log).as_json() | common)


def _groups(viewer: Viewer, plan: stored.SamplingPlan) -> list[dict[str, Any]]:
    log = viewer.judgements
    found = viewer.index.remember(
        (plan.plan, log.version), lambda: measure(_rounds(log, plan), log)
    )
    return [own.as_json() for own in found.values()]


def _rounds(log: stored.JudgementLog, plan: stored.SamplingPlan) -> list[stored.SamplingPlan]:
    return rounds_of(log, plan.certificate.settings) if plan.certificate else [plan]


def _about_answers(log: stored.JudgementLog, plan: stored.SamplingPlan) -> str:
    """Say how far people agree about a plan's questions, and whether somebody answered too fast to
    look.
    """
    states: list[stored.RelationState] = []
    for round_ in _rounds(log, plan):
        states += states_of(round_, log).values()
    return " ".join(filter(None, [describe_alpha(states), describe_haste(states)]))


def ask_next(request: Request) -> Response:
    """Go to the page of the plan's next open question, or back to the page of plans if there is
    none.
    """
    name = request.path_params["plan"]
    if name in viewer_of(request).judgements.recall_plans:
        return RedirectResponse(f"/recall/{name}", 303)
    plan, question = _asked(request)
    if question is None:
        return RedirectResponse(f"/judge#{plan.plan}", 303)
    place = image_url(
        question.split, question.image_id, [("plan", plan.plan)], relation_key(question)
    )
    return RedirectResponse(place, 303)


def _asked(request: Request) -> tuple[stored.SamplingPlan, stored.PlannedQuestion | None]:
    """Return the plan that the address names, and its next open question for whoever asks."""
    (viewer, log), who = _reloaded(request), _asker(request)
    plan = _plan(viewer, request.path_params["plan"])
    # Once all is answered, by whoever and even if a server was killed then, another round begins.
    if plan.certificate and not viewer.read_only:
        settings = plan.certificate.settings
        with suppress(UserError):  # a run that has changed since gets no more questions
            key = ("round", settings, log.version)
            plan = (
                viewer.index.remember(key, lambda: extend(viewer.index, settings, log, who)) or plan
            )
    done = (
        [own["predicate"] for own in _groups(viewer, plan) if not own["open"]]
        if plan.certificate
        else ()
    )
    questions = (next_question(each, log, who, done) for each in _rounds(log, plan))
    return plan, next(filter(None, questions), None)


def recall_question(request: Request) -> Response:
    """Return a question of a recall plan and what this person answered, but nothing that the run
    says of relations.
    """
    viewer = viewer_of(request)
    plan = _recall_plan(request)
    who = _asker(request)
    at = request.query_params.get("at", "")
    left = questions_left(plan, viewer.judgements, who)
    number = (
        int(at)
        if at.isascii() and at.isdigit() and len(at) < 6
        else next(iter(left), len(plan.questions))
    )
    values = {"number": number, "of": len(plan.questions), "left": len(left), "question": None}
    if number >= len(plan.questions):
        return JSONResponse(values)
    question = plan.questions[number]
    view = read_record(viewer.index, *question.place)
    if view is None or max(question.boxes) >= len(view.record.objects):
        raise HTTPException(404, "the run has changed: it lacks this image or its boxes")
    record = view.record
    own = viewer.judgements.blind_answers(plan.plan).get(question.place, {}).get(who)
    image = {
        name: getattr(record, name)
        for name in ("split", "image_id", "file_name", "width", "height")
    }
    objects = [
        {
            "index": index,
            "name": f"{at} {box.category}",
            "box": box.bbox,
            "colour": colour_of(index),
        }
        for at, (index, box) in enumerate(
            ((index, record.objects[index]) for index in question.boxes), 1
        )
    ]
    said = [each.model_dump() for each in (own and own.relations) or ()]
    asked = {
        "image": {**image, "photo": photo_url(*question.place)},
        "objects": objects,
        "relations": said,
    }
    return JSONResponse({**values, "question": asked})


def _recall_plan(request: Request) -> stored.RecallPlan:
    _, log = _reloaded(request)
    plan = log.recall_plans.get(request.path_params["plan"])
    if plan is None:
        raise HTTPException(404, "there is no such plan")
    return plan


def plans_page(request: Request) -> Response:
    """Return the page on which plans are made and followed; the parameters of a search let one
    sample it.
    """
    (viewer, log), params = _reloaded(request), request.query_params.multi_items()
    filters = Filters.from_params(params, viewer.index.vocabulary)
    states = list(log.current())
    plans = [*log.plans.values()]
    certificates = {each.certificate.settings: each for each in plans if each.certificate}
    values = {
        "plans": [
            (each, PlanProgress(each, log)) for each in reversed(plans) if not each.certificate
        ],
        "certificates": [(plan, _groups(viewer, plan)) for plan in certificates.values()],
        "usual": stored.CertificateSettings(precision=1, prediction=usual_prediction(viewer.index)),
        "recalls": list(log.recall_plans.values()),
        "alpha": describe_alpha(states),
        "about_answers": lambda plan: _about_answers(log, plan),
        "search": filters.to_params(),
        "parse_search": parse_qsl,
        "searches_images": filters.finds_images,
        "questions": _QUESTIONS,
        "judged": len(states),
        "counts": Counter(state.state for state in states),
        "added": sum(state.is_added for state in states),
        "conflicts": [state for state in states if state.is_conflict][:_CONFLICTS_SHOWN],
        "problems": log.problems,
    }
    return render(request, "judge", values)


def _plan(viewer: Viewer, name: str) -> stored.SamplingPlan:
    """Return a plan; of a certificate, its last round."""
    plan = viewer.judgements.plans.get(name)
    if plan is None:
        raise HTTPException(404, "there is no such plan")
    return _rounds(viewer.judgements, plan)[-1]


def _who(viewer: Viewer, name: str) -> str:
    return single_line(name) or single_line(viewer.name) or "anonymous"


def _asker(request: Request) -> str:
    return _who(viewer_of(request), request.query_params.get("by", ""))


ROUTES = [
    Route("/api/judgements", _writing(judge), methods=["POST"]),
    Route("/api/judgements", judgements_of_image),
    Route("/api/plans", _writing(draw_plan), methods=["POST"]),
    Route("/api/plans/{plan}", plan_progress),
    Route("/api/recall/{plan}", recall_question),
    Route(
        "/recall/{plan}", lambda request: render(request, "recall", {"plan": _recall_plan(request)})
    ),
    Route("/judge", plans_page),
    Route("/judge/{plan}", ask_next),
]
