"""`sgpipe stats` and `sgpipe score`: what a run contains, and how good its relations are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sgpipe.cli.options import Device, GroundTruthFolder, ImageData, Json, MovedImages, Run
from sgpipe.utils import console
from sgpipe.utils.console import count


def stats(
    run: Run,
    json_: Json = False,
    html: Annotated[Path | None, typer.Option(help="Write the full report, with a gallery, to this file.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Draw images with their relations into this PNG file.")] = None,
    shown: Annotated[
        int,
        typer.Option("--shown", "--pictures", min=1, help="Images in the gallery or on the sheet; was --pictures."),
    ] = 20,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Minimum confidence of the relations that are checked and drawn.")
    ] = 0.2,
    images: MovedImages = None,
    compare: Annotated[Path | None, typer.Option(help="Earlier run; shows what has changed since then.")] = None,
    truth: GroundTruthFolder = None,
    image_data: ImageData = None,
    review: Annotated[int | None, typer.Option(min=1, help="Write a page for judging N relations by hand.")] = None,
    review_file: Annotated[Path, typer.Option(help="File for the --review page.")] = Path("review.html"),
    seed: Annotated[int, typer.Option(help="Random seed of the --review sample.")] = 0,
    verdicts: Annotated[Path | None, typer.Option(help="File that the --review page exported.")] = None,
    precision: Annotated[float, typer.Option(min=0, max=1, help="Target precision of the suggested thresholds.")] = 0.8,
) -> None:
    """Count what a run contains, check its health, and show samples."""
    from sgpipe.stats.audit import audit
    from sgpipe.stats.gallery import cards
    from sgpipe.stats.html import write_report
    from sgpipe.stats.measures import measure
    from sgpipe.stats.review import write_review
    from sgpipe.stats.samples import write_sheet
    from sgpipe.stats.terminal import print_json, print_tables
    from sgpipe.storage.database import open_run
    from sgpipe.storage.run_folder import GroundTruth, RunFolder

    err = console.progress()
    if image_data is not None and truth is None:
        raise typer.BadParameter("--image-data finds COCO's images in Visual Genome: give --truth, too")
    before = measure(compare, threshold) if compare else None
    with open_run(run) as database:
        if review is not None:
            asked, lost = write_review(database, review_file, review, seed, images)
            questions = f"{count(asked, 'question')} to {review_file}{_missing(lost)}"
            err.print(f"wrote {questions}; open it in a browser", soft_wrap=True)
            return
        ground_truth = GroundTruth(truth, None, image_data) if truth else RunFolder(run).ground_truth
        report = audit(database, threshold, ground_truth, verdicts, precision, before)
        gallery = list(cards(database, shown, threshold, images)) if html else []
    if json_:
        print_json(report)
    else:
        print_tables(report, console.output())
    if html is not None:
        write_report(html, report, gallery, threshold)
        lost = sum(card.image is None for card in gallery)
        err.print(f"wrote {html} with {count(len(gallery), 'image')} in its gallery{_missing(lost)}", soft_wrap=True)
    if sheet is not None:
        drawn, lost = write_sheet(run, sheet, shown, threshold, images)
        err.print(f"drew {count(drawn, 'image')} into {sheet}{_missing(lost)}", soft_wrap=True)


def _missing(lost: int) -> str:
    return f", {lost} of them without their image (give --images FOLDER)" if lost else ""


def score(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder for the shards with scores; an unfinished scoring is resumed.")],
    model: Annotated[str, typer.Option(help="open_clip model: name, hf-hub:ID or folder.")] = "ViT-B-32",
    weights: Annotated[str | None, typer.Option(help="Weights of a named model: file or tag.")] = None,
    contrasts: Annotated[int, typer.Option(min=1, help="Number of other predicates to compare with.")] = 8,
    images: MovedImages = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Score with CLIP how well relations fit their images.

    `sgpipe stats` reports the scores.
    """
    import json

    from sgpipe.generation.clip_agreement import ClipAgreement
    from sgpipe.generation.scoring import frequent_predicates, model_identity, score_run

    predicates = frequent_predicates(run, contrasts)
    identity = {"model": model_identity(model), "weights": model_identity(weights), "contrasts": predicates}
    progress = console.Progress(console.progress())
    counts = score_run(run, out, lambda: ClipAgreement(model, weights, predicates, device), identity, progress, images)
    if json_:
        print(json.dumps(counts))
        return
    scored = f"{count(counts['scored'], 'relation')} scored"
    console.output().print(f"{scored}, {counts['unscored']:,} without an image or a box with an area")
