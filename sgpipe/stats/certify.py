"""`sgpipe certify`: the certificate that people's answers to rounds of questions give.

The certificate contains nothing but what follows from the run and the first bytes of the file of
judgements, so that it can be computed again.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.files.locations import Location, read_text
from sgpipe.stats.certificate_progress import GroupProgress, GroupValues, measure, rounds_of
from sgpipe.stats.certificate_rounds import check_rounds, extend
from sgpipe.stats.plans import VERDICTS, describe_haste, states_of
from sgpipe.stats.population import Population, population_of, settings_for
from sgpipe.storage.certificate import Certificate, CertifiedSet, JudgementsRead, NotCovered
from sgpipe.storage.index import open_run
from sgpipe.storage.judgement_lines import CertificateSettings, Judgement, RelationKey, SamplingPlan
from sgpipe.storage.judgements import CERTIFICATE, JudgementLog, RelationState


def certify(
    population: Population, settings: CertificateSettings, log: JudgementLog
) -> Certificate:
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
    judgements = _judgements_about(plans, log)
    people = Counter(judgement.by for judgement in judgements)
    dates = sorted(judgement.at for judgement in judgements)
    content = log.file.read_bytes() if plans else b""
    return Certificate(
        run=population.run,
        **settings.model_dump(),
        sets=sets,
        people=dict(sorted(people.items())),
        dates=dates[:1] + dates[-1:],
        plans_begun=_plans_begun(log),
        not_covered=NotCovered(
            error_rows=population.errors,
            images_without_relations=population.unlabelled,
            other_relations=population.relations - sum(part.relations for part in sets),
            recall=_recall_in_words(log),
        ),
        judgements=JudgementsRead(bytes=len(content), sha256=hashlib.sha256(content).hexdigest()),
    )


def _certified_set(group: GroupProgress, reached: int) -> CertifiedSet:
    sizes = group.latest.relations
    return CertifiedSet(
        predicate=group.predicate,
        threshold=group.latest.thresholds[reached],
        relations=sizes[reached],
        population=sizes[-1],
        answers={verdict: group.answers.count(verdict) for verdict in VERDICTS},
    )


def _judgements_about(plans: Sequence[SamplingPlan], log: JudgementLog) -> list[Judgement]:
    """Return the present judgements of the relations that plans ask about."""
    asked = set[RelationKey]()
    for plan in plans:
        asked.update(question.key for question in plan.questions)
    judgements: list[Judgement] = []
    for state in log.current():
        if state.key in asked:
            judgements += state.judgements
    return judgements


def _recall_in_words(log: JudgementLog) -> str:
    if log.recall_plans:
        return "asked about: see `sgpipe stats --judgements`"
    return "not measured"


def check(run: str | Location, judgements: Path) -> Certificate:
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
        certificate = Certificate.model_validate_json(read_text(file, "certificate"))
        settings = certificate.settings
    except ValueError:
        raise UserError(f"{file} is not a file of `sgpipe certify`") from None
    content = judgements.read_bytes() if judgements.is_file() else b""
    with tempfile.TemporaryDirectory() as folder, open_run(run) as database:
        first_answers = Path(folder) / judgements.name
        first_answers.write_bytes(content[: certificate.judgements.bytes])
        population = Population(database, settings)
        computed = certify(population, settings, JudgementLog(first_answers, population.run))
        log = JudgementLog(judgements, population.run)
        progress = measure(rounds_of(log, settings), log)
    # it changes when a recall plan begins
    computed.not_covered.recall = certificate.not_covered.recall
    advice = "run `sgpipe certify` again"
    for name, value in computed:
        if getattr(certificate, name) != value:
            raise UserError(f"{file}: {name} is not what {run} and its judgements give; {advice}")
    if not certificate.sets:
        raise UserError(f"{file} certifies nothing; {advice}")
    for certified in certificate.sets:
        group = progress[certified.predicate]
        reached = group.standing.reached
        if reached is None or group.latest.thresholds[reached] > certified.threshold:
            raise UserError(f"{file}: answers that were changed since no longer give it; {advice}")
    return certificate


@dataclass(frozen=True)
class CertificateState:
    """How far a certificate is.

    Attributes:
        certificate: what is certified so far.
        groups: how far each group of relations is.
        haste: who answered too fast to look, in words, as `describe_haste`.
    """

    certificate: Certificate
    groups: list[GroupValues]
    haste: str

    @property
    def open_questions(self) -> int:
        return sum(group["open"] for group in self.groups)


def continue_plan(
    run: str | Location, judgements: Path, *, is_separate: bool = False, **values: object
) -> CertificateState:
    """Append the next round of questions if none is open.

    Args:
        run: to certify.
        judgements: the file of judgements.
        is_separate, values: the settings, as of `settings_for`.

    Raises:
        UserError: as `settings_for` and `extend`.
    """
    with open_run(run) as database:
        settings = settings_for(database, is_separate, **values)
        log = JudgementLog(judgements, database.fingerprint)
        certificate = certify(population_of(database, settings), settings, log)
        extend(database, settings, log, "sgpipe certify")
        certificate.plans_begun = _plans_begun(log)  # more only if this call has begun the plan
        rounds = rounds_of(log, settings)
        groups = [group.as_json() for group in measure(rounds, log).values()]
        states: list[RelationState] = []
        for round_ in rounds:
            states += states_of(round_, log).values()
    return CertificateState(certificate, groups, describe_haste(states))


def _plans_begun(log: JudgementLog) -> int:
    return len({plan.certificate.settings.id for plan in log.plans.values() if plan.certificate})
