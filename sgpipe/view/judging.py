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
import re
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from math import isfinite
from typing import Literal, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from sgpipe.errors import UserError
from sgpipe.records import Box, Record, Relation
from sgpipe.stats.certificate_progress import GroupValues, measure, rounds_of
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
from sgpipe.stats.recall import BOXES, Bar, draw_recall, measure_recall, questions_left
from sgpipe.stats.samples import Values
from sgpipe.storage.index import read_record
from sgpipe.storage.judgement_lines import (
    MOST_QUESTIONS,
    BlindAnswer,
    CertificateSettings,
    Correction,
    Judgement,
    Kind,
    Line,
    PlannedQuestion,
    RecallPlan,
    SamplingPlan,
    describe_invalid,
    utc_now,
)
from sgpipe.storage.judgements import JudgementLog, RelationState
from sgpipe.utils import LARGEST_SEED
from sgpipe.utils.console import count, single_line
from sgpipe.view.pages import Viewer, image_url, photo_url, relation_key, render, viewer_of
from sgpipe.view.search import Filters, select_relations
from sgpipe.viz import colour_of

Model = TypeVar("Model", bound=BaseModel)
_QUESTIONS = 200
_CONFLICTS_SHOWN = 100
_OF_IMAGE = ("split", "image_id", "file_name", "width", "height")
_OF_RELATION = ("subject_category", "object_category", "confidence")


def _writing(
    handler: Callable[[Request, Values], Response],
) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler of writes, which runs in a thread.

    Status 400: the body is not a JSON object; 409: it is about another run.
    """

    async def handle(request: Request) -> Response:
        values = None
        log = viewer_of(request).judgements
        with suppress(ValueError, RecursionError):
            body = json.loads(await request.body())
            json.dumps(body, allow_nan=False)  # raises ValueError if a number is not finite
            values = body
        if not isinstance(values, dict):
            raise HTTPException(400, "the body is not a JSON object")
        if values.get("run", log.fingerprint) != log.fingerprint:
            raise HTTPException(
                409, "this page is about another run than the server: reload it; nothing is saved"
            )
        return await run_in_threadpool(handler, request, values)

    return handle


def _reloaded(request: Request) -> tuple[Viewer, JudgementLog]:
    """Return the viewer and its judgements, with what other processes appended."""
    viewer = viewer_of(request)
    viewer.judgements.reload()
    return viewer, viewer.judgements


def judge(request: Request, values: Values) -> Response:
    """Write a judgement into the file of the run before it is acknowledged.

    A repeated one is not written again.
    """
    viewer, log = _reloaded(request)
    known = log.lines.get(str(values.get("id")))
    if known:
        return JSONResponse(known.model_dump(mode="json"))
    who = _who(viewer, str(values.get("by") or ""))
    values |= {"at": utc_now(), "run": log.fingerprint, "by": who}
    line: Judgement | BlindAnswer
    if "relations" in values:
        line = _blind_answer(log, values)
    elif values.get("undoes") is None:
        line = _checked(viewer, _valid(Judgement, values, "a judgement"))
    else:
        line = _undo(log, values)
    return JSONResponse(log.append(line).model_dump(mode="json"))


def _blind_answer(log: JudgementLog, values: Values) -> BlindAnswer:
    """Return an answer to a question of a recall plan."""
    answer = _valid(BlindAnswer, values, "an answer")
    plan = log.recall_plans.get(answer.plan)
    boxes: dict[tuple[str, str], list[int]] = {}
    for question in plan.questions if plan else ():
        boxes[question.place] = question.boxes
    place = (answer.split, answer.image_id)
    if place not in boxes:
        raise HTTPException(404, "there is no such plan, or it does not ask about this image")
    for relation in answer.relations or ():
        ends = {relation.subject, relation.object}
        if len(ends) != 2 or not ends.issubset(boxes[place]):
            raise HTTPException(400, "a relation is one between two boxes of the question")
        _check_predicate(relation.predicate)
    return answer


def _undo(log: JudgementLog, values: Values) -> Judgement:
    """Return a line that takes a judgement back; it repeats what that one is about."""
    undone = log.lines.get(str(values["undoes"]))
    if not isinstance(undone, Judgement) or undone.undoes is not None:
        raise HTTPException(404, "there is no such judgement to take back")
    if undone.by != values["by"]:
        raise HTTPException(409, f"this judgement is by {undone.by}, who alone can take it back")
    about = undone.model_dump(include={*undone.key._asdict(), *_OF_RELATION, "plan", "stratum"})
    return _valid(Judgement, values | about, "a judgement")


def _valid(kind: type[Model], values: Values, noun: str) -> Model:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise HTTPException(
            400, f"not {noun}: {single_line(describe_invalid(error), 200)}"
        ) from None


def _check_predicate(text: str) -> None:
    if text != single_line(text) or not 0 < len(text) <= 200:
        raise HTTPException(
            400, "a predicate is one line of at most 200 characters without outer spaces"
        )


def _checked(viewer: Viewer, line: Judgement) -> Judgement:
    """Return the line with what the run says of its relation.

    It also gets the stratum, if its plan asked about the relation.
    """
    view = read_record(viewer.index, line.split, line.image_id)
    if view is None or max(line.subject, line.object) >= len(view.record.objects):
        raise HTTPException(404, "the run has no such image or boxes")
    subject = view.record.objects[line.subject]
    object_ = view.record.objects[line.object]
    relations = _relations_of(view.record, line)
    plan, stratum = _asked_by(viewer, line)
    is_proposed = plan is not None and plan.kind == "doubts"
    if is_proposed and not relations:
        line = _answer_to_proposal(line)
    if line.is_addition:
        _check_addition(line, bool(relations), subject)
    elif not (relations or is_proposed or viewer.judgements.was_added(line.key)):
        raise HTTPException(404, "the run has no such relation")
    if line.change:
        _check_change(line.change, object_)
    known = {
        "plan": plan.plan if plan else None,
        "stratum": stratum,
        "subject_category": subject.category,
        "object_category": object_.category,
        "confidence": _highest_confidence(relations),
    }
    return line.model_copy(update=known)


def _relations_of(record: Record, line: Judgement) -> list[Relation]:
    """Return the relations of an image that a judgement is about."""
    relations = []
    for relation in record.relations:
        if (relation.subject, relation.object, relation.predicate) == line.key[2:]:
            relations.append(relation)
    return relations


def _asked_by(viewer: Viewer, line: Judgement) -> tuple[SamplingPlan | None, int | None]:
    """Return the plan that asks about a relation, and the stratum; (None, None): nobody asked.

    Of a repeated question, it is the first one's.
    """
    if line.plan:
        plan = _plan(viewer, line.plan)
        for question in plan.questions:
            if question.key == line.key:
                return plan, question.stratum
    return None, None


def _highest_confidence(relations: Sequence[Relation]) -> float | None:
    confidences = [relation.confidence for relation in relations if relation.confidence is not None]
    return max(filter(isfinite, confidences), default=None)


def _check_change(change: Correction, object_: Box) -> None:
    if change.action == "swap" and object_.is_nothing:
        raise HTTPException(400, "a relation without an object cannot be swapped")
    if change.predicate is not None:
        _check_predicate(change.predicate)


def _check_addition(line: Judgement, is_known: bool, subject: Box) -> None:
    if is_known:
        raise HTTPException(409, "the run has this relation already: judge it instead")
    if line.subject == line.object or subject.is_nothing:
        raise HTTPException(400, "a relation needs a subject and another object")
    _check_predicate(line.predicate)


def _answer_to_proposal(line: Judgement) -> Judgement:
    """Return an answer about a relation that the run lacks and a plan proposes: "right" adds it.
    Status 409: it is a change.
    """
    if line.change and line.change.action in ("predicate", "swap"):
        raise HTTPException(
            409, "the run lacks this relation: answer wrong, then add the one that holds"
        )
    if line.judgement == "right":
        return line.model_copy(update={"judgement": None, "change": Correction(action="add")})
    return line


def judgements_of_image(request: Request) -> Response:
    """Return what people say about the relations of the image `image_id` of a `split`."""
    params = request.query_params
    _, log = _reloaded(request)
    states = log.state(params.get("split", ""), params.get("image_id", ""))
    return JSONResponse(
        {"relations": [state.as_json() for state in states], "problems": log.problems}
    )


class _NewPlan(BaseModel):
    """What a page says about a plan that is to be made.

    `search`: the parameters of a search, as in its URL.
    """

    model_config = ConfigDict(extra="forbid", strict=True, regex_engine="python-re")

    kind: Kind | Literal["recall"]
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


def draw_plan(request: Request, values: Values) -> Response:
    """Draw a stratified sample and write it into the file of judgements."""
    viewer, log = _reloaded(request)
    options = _valid(_NewPlan, values, "a plan")
    who = _who(viewer, options.by)
    if options.kind == "certificate":
        by = "predicate" if options.by_predicate else None
        settings = settings_for(viewer.index, precision=options.precision, by=by)
        round_ = extend(viewer.index, settings, log, who)
        if round_ is None:
            raise HTTPException(400, "there is nothing left to ask")
        return JSONResponse(_summary(round_), 201)
    existing = log.recall_plans.get(options.id) or log.plans.get(options.id)
    if existing:
        if existing.kind != options.kind:
            raise HTTPException(
                409, f"{options.id} is a plan of another kind ({existing.kind}): give another id"
            )
        return JSONResponse(_summary(existing), 201)
    common: Values = {
        "plan": options.id,
        "at": utc_now(),
        "by": who,
        "run": log.fingerprint,
        "seed": options.seed,
        "kind": options.kind,
    }
    plan: RecallPlan | SamplingPlan
    if options.kind == "recall":
        images, blind = draw_recall(viewer.index.rows, options.count, options.boxes, options.seed)
        plan = RecallPlan(**common, images=images, questions=blind)
    elif options.kind == "doubts":
        plan = _doubts_plan(viewer, options, who)
    else:
        search = options.search if options.kind == "search" else None
        filters = Filters.from_params(parse_qsl(search or ""), viewer.index.vocabulary)
        request.app.state.freshness.update_judgements()
        select, parameters = select_relations(viewer.index, filters)
        strata, questions = draw(
            viewer.index.rows, select, parameters, options.kind, options.count, options.seed
        )
        plan = SamplingPlan(**common, search=search, strata=strata, questions=questions)
    return JSONResponse(_summary(log.append(plan)), 201)


def _doubts_plan(viewer: Viewer, options: _NewPlan, who: str) -> SamplingPlan:
    """Ask the layout model what it doubts: half of the questions are of each kind."""
    from sgpipe.stats.doubts import find_doubts, plan_doubts

    if not 1 <= options.count <= MOST_QUESTIONS:
        raise UserError(f"{options.count} questions: expected 1 to {MOST_QUESTIONS:,}")
    doubts = find_doubts(viewer.index.root, (options.count + 1) // 2)
    return plan_doubts(doubts, viewer.judgements.fingerprint, who, options.id)


def _summary(plan: Line) -> Values:
    return plan.model_dump(mode="json", exclude={"questions"})


def plan_progress(request: Request) -> Response:
    """Return what a plan shows so far, and the next open question.

    That is its precision and how many more judgements it takes until ±3%, or how far the groups of
    a certificate or a recall plan are.
    """
    viewer, log = _reloaded(request)
    name = request.path_params["plan"]
    if name in log.recall_plans:
        return _recall_progress(viewer, log.recall_plans[name], _asker(request))
    plan, question = _asked(request)
    common = {
        "about_answers": _about_answers(log, plan),
        "question": question and question._asdict(),
    }
    if plan.certificate:
        groups = _groups(viewer, plan)
        unanswered = sum(group["open"] for group in groups)
        values = {"plan": plan.plan, "groups": groups, "open": unanswered}
        return JSONResponse(values | common)
    return JSONResponse(_summary(plan) | PlanProgress(plan, log).as_json() | common)


def _recall_progress(viewer: Viewer, plan: RecallPlan, who: str) -> Response:
    log = viewer.judgements
    left = questions_left(plan, log, who)
    if left and not viewer.read_only:
        # figures would tell what the run has of what was just named
        questions = len(plan.questions)
        answered = questions - len(left)
        line = (
            f"{answered:,} of {count(questions, 'question')} answered; figures follow the last one."
        )
        groups: list[Bar] = [{"share": 1 - len(left) / questions, "lines": [line]}]
    else:
        groups = measure_recall(plan, log, viewer.index.rows).as_groups()
    values = {"plan": plan.plan, "groups": groups, "open": len(left), "question": bool(left)}
    return JSONResponse(values)


def _groups(viewer: Viewer, plan: SamplingPlan) -> list[GroupValues]:
    """Return how far the groups of a certificate are, as values for a page."""
    log = viewer.judgements
    progress = viewer.index.remember(
        (plan.plan, log.version), lambda: measure(_rounds(log, plan), log)
    )
    return [group.as_json() for group in progress.values()]


def _rounds(log: JudgementLog, plan: SamplingPlan) -> list[SamplingPlan]:
    return rounds_of(log, plan.certificate.settings) if plan.certificate else [plan]


def _about_answers(log: JudgementLog, plan: SamplingPlan) -> str:
    """Say how far people agree about a plan's questions, and who answered too fast to look."""
    states: list[RelationState] = []
    for round_ in _rounds(log, plan):
        states += states_of(round_, log).values()
    return " ".join(filter(None, [describe_alpha(states), describe_haste(states)]))


def ask_next(request: Request) -> Response:
    """Go to the page of the plan's next open question, or else back to the page of plans."""
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


def _asked(request: Request) -> tuple[SamplingPlan, PlannedQuestion | None]:
    """Return the plan that the address names, and its next open question for whoever asks."""
    viewer, log = _reloaded(request)
    who = _asker(request)
    plan = _plan(viewer, request.path_params["plan"])
    # Once all is answered, by whoever and even if a server was killed then, another round begins.
    if plan.certificate and not viewer.read_only:
        settings = plan.certificate.settings
        with suppress(UserError):  # a run that has changed since gets no more questions
            key = ("round", settings, log.version)
            extended = viewer.index.remember(key, lambda: extend(viewer.index, settings, log, who))
            plan = extended or plan
    done = []
    if plan.certificate:
        done = [group["predicate"] for group in _groups(viewer, plan) if not group["open"]]
    questions = (next_question(round_, log, who, done) for round_ in _rounds(log, plan))
    return plan, next(filter(None, questions), None)


def recall_question(request: Request) -> Response:
    """Return a question of a recall plan and what this person answered.

    It contains nothing that the run says of relations.
    """
    viewer = viewer_of(request)
    plan = _recall_plan(request)
    who = _asker(request)
    left = questions_left(plan, viewer.judgements, who)
    number = next(iter(left), len(plan.questions))
    position = request.query_params.get("at", "")
    if re.fullmatch(r"[0-9]{1,5}", position):
        number = int(position)
    values: Values = {
        "number": number,
        "of": len(plan.questions),
        "left": len(left),
        "question": None,
    }
    if number >= len(plan.questions):
        return JSONResponse(values)
    question = plan.questions[number]
    view = read_record(viewer.index, *question.place)
    if view is None or max(question.boxes) >= len(view.record.objects):
        raise HTTPException(404, "the run has changed: it lacks this image or its boxes")
    image = {name: getattr(view.record, name) for name in _OF_IMAGE}
    answer = viewer.judgements.blind_answers(plan.plan).get(question.place, {}).get(who)
    relations = answer.relations if answer else None
    values["question"] = {
        "image": image | {"photo": photo_url(*question.place)},
        "objects": _numbered_boxes(view.record, question.boxes),
        "relations": [relation.model_dump() for relation in relations or ()],
    }
    return JSONResponse(values)


def _numbered_boxes(record: Record, boxes: Sequence[int]) -> list[Values]:
    """Return boxes of a question as values for its page, numbered from 1."""
    values = []
    for number, index in enumerate(boxes, 1):
        box = record.objects[index]
        name = f"{number} {box.category}"
        values.append({"index": index, "name": name, "box": box.bbox, "colour": colour_of(index)})
    return values


def _recall_plan(request: Request) -> RecallPlan:
    _, log = _reloaded(request)
    plan = log.recall_plans.get(request.path_params["plan"])
    if plan is None:
        raise HTTPException(404, "there is no such plan")
    return plan


def plans_page(request: Request) -> Response:
    """Return the page on which plans are made and followed.

    The parameters of a search let one sample it.
    """
    viewer, log = _reloaded(request)
    filters = Filters.from_params(request.query_params.multi_items(), viewer.index.vocabulary)
    states = list(log.current())
    samples = []
    certificates = {}
    for plan in log.plans.values():
        if plan.certificate:
            certificates[plan.certificate.settings] = plan
        else:
            samples.append((plan, PlanProgress(plan, log)))
    values = {
        "plans": samples[::-1],
        "certificates": [(plan, _groups(viewer, plan)) for plan in certificates.values()],
        "usual": CertificateSettings(precision=1, prediction=usual_prediction(viewer.index)),
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


def _plan(viewer: Viewer, name: str) -> SamplingPlan:
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
