"""`sgpipe stats`: what a run contains, its health, and samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils import console
from sgpipe.utils.console import count

_TARGET_PRECISION = 0.8


def stats(
    *,
    run: cli.StoredRuns,
    json_: cli.Json = False,
    html: Annotated[
        Path | None, declare.writes_file("Write the full report, with a gallery, to this file.")
    ] = None,
    sheet: Annotated[
        Path | None, declare.writes_file("Draw images with their relations into this PNG file.")
    ] = None,
    shown: Annotated[
        int, declare.option("Images in the gallery or on the sheet.", "--shown", min=1)
    ] = 20,
    threshold: Annotated[
        float | None, declare.option("Minimum confidence. Default: 0.2.", min=0, max=1)
    ] = None,
    calibration: cli.CalibrationFile = None,
    precision: Annotated[
        float | None, declare.option("Target precision of thresholds (0.8).", min=0, max=1)
    ] = None,
    images: cli.MovedImages = None,
    compare: Annotated[
        declare.Place | None, declare.reads_stored("Earlier run: show what has changed.")
    ] = None,
    truth: cli.GroundTruthFolder = None,
    image_data: cli.ImageData = None,
    judgements: cli.JudgedFile = None,
    estimate_total: Annotated[
        bool,
        declare.option(
            "Estimate how many relations exist, as if two people missed them independently."
        ),
    ] = False,
    doubts: Annotated[
        int | None,
        declare.option("Let the layout model list this many doubtful annotations and gaps.", min=1),
    ] = None,
) -> None:
    """Count what a run contains, check its health, and show samples.

    Examples:
      sgpipe stats coco-relations/
      sgpipe stats coco-relations/ --html report.html --sheet sheet.png
      sgpipe stats vg/ --doubts 50
    """
    from sgpipe.calibration import load_calibration
    from sgpipe.stats import audit, measures, report, samples, tables
    from sgpipe.storage.index import open_run
    from sgpipe.storage.run_folder import GroundTruth, ground_truth_of

    if image_data is not None and truth is None:
        raise UserError("--image-data needs --truth")
    judgements = cli.judged_file(run, judgements)
    if estimate_total and judgements is None:
        raise UserError(
            "--estimate-total needs --judgements, in which two people answered a recall plan"
        )
    threshold = _min_confidence(threshold, calibration, precision)
    probabilities = None if calibration is None else load_calibration(calibration)
    before = measures.measure(compare, threshold, probabilities) if compare else None
    with open_run(run) as database:
        ground_truth = GroundTruth(truth, None, image_data) if truth else ground_truth_of(run)
        audited = audit.audit(
            database,
            threshold,
            ground_truth,
            judgements,
            _TARGET_PRECISION if precision is None else precision,
            before,
            probabilities,
            estimate_total,
            doubts,
        )
        if not cli.printed_json(json_, audited.as_dict()):
            tables.print_audit(audited, console.output())
        if html is not None:
            chosen = samples.open_samples(database, shown, threshold, images, probabilities)
            drawn, lost = report.write_report(html, audited, chosen, threshold)
            cli.say(f"wrote {html} with {count(drawn, 'image')} in its gallery{_missing(lost)}")
        if sheet is not None:
            chosen = samples.open_samples(database, shown, threshold, images, probabilities)
            drawn, lost = samples.write_sheet(database, sheet, chosen, threshold)
            cli.say(f"drew {count(drawn, 'image')} into {sheet}{_missing(lost)}")


def _min_confidence(
    threshold: float | None, calibration: declare.Place | None, precision: float | None
) -> float:
    """Return the given or default confidence, or the one that a calibration expects so precise."""
    from sgpipe.calibration import probability_for
    from sgpipe.records import TRAINING_CONFIDENCE

    if calibration is not None and precision is not None:
        return probability_for(calibration, precision, threshold)
    return TRAINING_CONFIDENCE if threshold is None else threshold


def _missing(lost: int) -> str:
    return f", {lost} of them without their image (if they moved, pass --images)" if lost else ""
