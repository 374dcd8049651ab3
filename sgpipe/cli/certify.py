"""`sgpipe calibrate` and `certify`: what judged relations say about the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils import console
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from sgpipe.stats.certify import CertificateState

_Prediction = Literal["vlm_score", "clip_score", "confidence", "none"]


def calibrate(
    run: cli.StoredRuns,
    truth: cli.GroundTruthFolder = None,
    judgements: cli.JudgedFile = None,
    image_data: cli.ImageData = None,
    out: Annotated[Path, declare.writes_file("File for the calibration.")] = Path(
        "calibration.json"
    ),
    json_: cli.Json = False,
) -> None:
    """Learn from judged relations how probable it is that a relation is correct.

    Half of the images show how good that is; the file is made from all of them.
    With --calibration FILE, thresholds of generate, stats, export and train are
    probabilities.

    Examples:
      sgpipe calibrate coco-relations/ --judgements own
      sgpipe calibrate coco-relations/ --truth vg/ --image-data image_data.json --out
      calibration.json
    """
    from sgpipe.stats.calibrate import calibrate as learn
    from sgpipe.stats.calibrate import judge_by_truth
    from sgpipe.stats.judged_precision import judge_by_people

    judgements = cli.judged_file(run, judgements)
    if judgements is not None and (truth is not None or image_data is not None):
        raise UserError("pass --truth or --judgements, not both")
    if judgements is not None:
        calibration, report = learn(run, judge_by_people(run, judgements), "people")
    else:
        calibration, report = learn(
            run, judge_by_truth(run, cli.ground_truth_for(run, truth, image_data))
        )
    calibration.save(out)
    if json_:
        print(report.as_json(), end="")
    else:
        report.print(console.output())
        cli.show(f"wrote {out}; use it with --calibration {out}")


def certify(
    run: cli.StoredRuns,
    precision: Annotated[
        float, declare.option("The precision to certify, such as 0.95.", min=0, max=1)
    ],
    confidence: Annotated[
        float, declare.option("How sure the certificate is.", min=0, max=1)
    ] = 0.95,
    by: Annotated[
        Literal["predicate"] | None, declare.option("Certify the relations of each predicate.")
    ] = None,
    is_separate: Annotated[
        bool, declare.option("With --by: how sure each certificate is, not all together.", "--each")
    ] = False,
    threshold: Annotated[
        float | None, declare.option("Minimum confidence. Default: as many as possible.")
    ] = None,
    prediction: Annotated[
        _Prediction | None, declare.option("What predicts wrong relations. Default: by the run.")
    ] = None,
    judgements: cli.JudgedFile = None,
    out: Annotated[
        Path | None,
        declare.writes_file("File for the certificate. Default: certificate.json in RUN."),
    ] = None,
    json_: cli.Json = False,
) -> None:
    """Certify the precision of a run's relations from people's answers.

    The first call makes a plan of questions. Answer them in `sgpipe view`, which
    shows how many are left, and call it again at any time: looking costs nothing.
    Exit code 1: not reached yet.

    Examples:
      sgpipe certify coco-relations/ --precision 0.95
      sgpipe export coco-relations/ --to hf --certified --out for-the-hub/
    """
    from sgpipe.stats.certify import continue_plan
    from sgpipe.storage.datasets import open_files
    from sgpipe.storage.judgements import CERTIFICATE
    from sgpipe.storage.run_folder import write_result_text

    files = open_files(run)
    run_judgements = files.judgements
    answers = cli.judged_file(run, judgements) or run_judgements
    if out is None and answers.resolve() != run_judgements.resolve():
        raise UserError(f"pass --out, too: a certificate in {run} is one of its own judgements")
    if files.is_being_written:
        raise UserError(
            f"{run} is being written: certify it when it is finished, as more relations need"
            " another plan"
        )
    state = continue_plan(
        run,
        answers,
        precision=precision,
        confidence=confidence,
        by=by,
        is_separate=is_separate,
        threshold=threshold,
        prediction=prediction,
    )
    certificate = state.certificate
    if certificate.sets:
        file = out or run_judgements.parent / CERTIFICATE
        write_result_text(file, json.dumps(certificate.as_json(), indent=2) + "\n")
    if certificate.plans_begun > 1:
        begun = f"{certificate.plans_begun} plans of certificates have begun for this run"
        cli.say(f"NOTE: {begun}: each holds with its own confidence, not all of them together")
    if state.haste:
        cli.say(f"NOTE: {state.haste}")
    values = {
        "certificate": certificate.as_json(),
        "groups": state.groups,
        "open": state.open_questions,
    }
    if not cli.printed_json(json_, values):
        _show_progress(run, state)
    if not certificate.sets:
        raise typer.Exit(console.EXIT_FAILED)


def _show_progress(run: declare.Place, state: CertificateState) -> None:
    """Print how far each group is, and where to answer the questions."""
    for group in state.groups:
        for line in group["lines"]:
            cli.show(line)
    if state.open_questions:
        cli.say(
            f"{count(state.open_questions, 'open question')}: answer them in `sgpipe view {run}`, on the"
            " page Judge"
        )
