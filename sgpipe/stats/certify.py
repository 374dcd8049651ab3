"""`sgpipe certify`: the certificate that people's answers to rounds of questions give.

The certificate contains nothing but what follows from the run and the first bytes of the file of
judgements, so that it can be computed again.
"""

import hashlib
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError
from sgpipe.files.locations import Location, read_text
from sgpipe.stats.certificate_progress import GroupProgress, measure, rounds_of
from sgpipe.stats.certificate_rounds import check_rounds, extend
from sgpipe.stats.plans import Judged, describe_haste, states_of
from sgpipe.stats.population import Population, population_of, settings_for
from sgpipe.storage.index import open_run
from sgpipe.storage.judgements import (
    CERTIFICATE,
    CertificateSettings,
    Judgement,
    JudgementLog,
    RelationState,
)

_VERDICTS: tuple[Judged, ...] = ("right", "wrong", "unsure")
_METHOD = "betting, sampling without replacement, valid at any time"


def certify(
    population: Population, settings: CertificateSettings, log: JudgementLog
) -> dict[str, Any]:
    """Return the certificate so far; its `sets` may be empty.

    Raises:
        UserError: the rounds are not drawn from this run.
    """
    plans = rounds_of(log, settings)
    check_rounds(population, settings, plans)
    sets = []
    for group in measure(plans, log).values():
        if group.standing.reached is not None:
            sets.append(_certified_set(group, group.standing.reached))
    asked = {question.key for plan in plans for question in plan.questions}
    judgements: list[Judgement] = []
    for state in log.current():
        if state.key in asked:
            judgements += state.judgements
    people = Counter(judgement.by for judgement in judgements)
    dates = sorted(judgement.at for judgement in judgements)
    content = log.file.read_bytes() if plans else b""
    return {
        "format": 1,
        "run": population.run,
        "method": _METHOD,
        **settings.model_dump(mode="json"),
        "sets": sets,
        "people": dict(sorted(people.items())),
        "dates": [dates[0], dates[-1]] if dates else [],
        "plans_begun": _plans_begun(log),
        "not_covered": {
            "error_rows": population.errors,
            "images_without_relations": population.unlabelled,
            "other_relations": population.relations - sum(item["relations"] for item in sets),
            "recall": (
                "asked about: see `sgpipe stats --judgements`"
                if log.recall_plans
                else "not measured"
            ),
        },
        "judgements": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
    }


def _certified_set(group: GroupProgress, reached: int) -> dict[str, Any]:
    """Return a set of a group, as the certificate lists it."""
    sizes = group.latest.relations
    return {
        "predicate": group.predicate,
        "threshold": group.latest.thresholds[reached],
        "relations": sizes[reached],
        "of": sizes[-1],
        "answers": {verdict: group.answers.count(verdict) for verdict in _VERDICTS},
    }


def check(run: str | Location, judgements: Path) -> dict[str, Any]:
    """Return a run's certificate after computing it again.

    Args:
        run: that is certified.
        judgements: the file of judgements, which lies beside the certificate.

    Raises:
        UserError: there is no certificate, or run and answers do not give it, or not any more.
    """
    file = judgements.with_name(CERTIFICATE)
    if not file.is_file():
        raise UserError(f"{run} has no certificate: `sgpipe certify {run} --precision P` makes one")
    try:
        certificate: dict[str, Any] = json.loads(read_text(file, "certificate"))
        names = CertificateSettings.model_fields.keys() & certificate.keys()
        settings = CertificateSettings(**{name: certificate[name] for name in names})
        end = int(certificate["judgements"]["bytes"])
        recall = certificate["not_covered"]["recall"]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise UserError(f"{file} is not a file of `sgpipe certify`") from None
    content = judgements.read_bytes() if judgements.is_file() else b""
    with tempfile.TemporaryDirectory() as folder, open_run(run) as database:
        first_answers = Path(folder) / judgements.name
        first_answers.write_bytes(content[:end])
        population = Population(database, settings)
        computed = certify(population, settings, JudgementLog(first_answers, population.run))
        log = JudgementLog(judgements, population.run)
        progress = measure(rounds_of(log, settings), log)
    computed["not_covered"]["recall"] = recall  # it changes when a recall plan begins
    advice = "run `sgpipe certify` again"
    for name, value in computed.items():
        if certificate.get(name) != value:
            raise UserError(f"{file}: {name} is not what {run} and its judgements give; {advice}")
    if not certificate["sets"]:
        raise UserError(f"{file} certifies nothing; {advice}")
    for certified in certificate["sets"]:
        group = progress[certified["predicate"]]
        reached = group.standing.reached
        if reached is None or group.latest.thresholds[reached] > certified["threshold"]:
            raise UserError(f"{file}: answers that were changed since no longer give it; {advice}")
    return certificate


def continue_plan(
    run: str | Location, judgements: Path, **values: Any
) -> tuple[dict[str, Any], list[dict[str, Any]], int, str]:
    """Append the next round of questions if none is open.

    Args:
        run: to certify.
        judgements: the file of judgements.
        values: as of `settings_for`.

    Returns:
        The certificate, how far each group is, how many questions are open, and as
        `describe_haste`.

    Raises:
        UserError: as `settings_for` and `extend`.
    """
    with open_run(run) as database:
        settings = settings_for(database, **values)
        log = JudgementLog(judgements, database.fingerprint)
        certificate = certify(population_of(database, settings), settings, log)
        extend(database, settings, log, "sgpipe certify")
        certificate["plans_begun"] = _plans_begun(log)  # more only if this call has begun the plan
        rounds = rounds_of(log, settings)
        groups = [group.as_json() for group in measure(rounds, log).values()]
        states: list[RelationState] = []
        for round_ in rounds:
            states += states_of(round_, log).values()
    return certificate, groups, sum(group["open"] for group in groups), describe_haste(states)


def _plans_begun(log: JudgementLog) -> int:
    return len({plan.certificate.settings.id for plan in log.plans.values() if plan.certificate})
