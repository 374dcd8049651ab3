"""`sgpipe stats`: what a run holds, as tables, JSON, pictures and pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sgpipe import consoles


def stats(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    html: Annotated[Path | None, typer.Option(help="HTML file for the whole report, with a gallery.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="PNG to draw pictures with their relations into.")] = None,
    pictures: Annotated[int, typer.Option(min=1, help="How many pictures in the gallery or on the sheet.")] = 20,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Confidence of the relations that are checked and drawn.")
    ] = 0.2,
    images: Annotated[Path | None, typer.Option(help="Picture folder, if the pictures moved.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Another run: what changed since it.")] = None,
    truth: Annotated[
        Path | None, typer.Option(help="Shards of the truth, such as `sgpipe import` makes; known of drawn pictures.")
    ] = None,
    image_data: Annotated[
        Path | None, typer.Option(help="Visual Genome's image_data.json, if that is the truth of COCO's pictures.")
    ] = None,
    review: Annotated[int | None, typer.Option(min=1, help="Write a page on which to judge so many relations.")] = None,
    review_file: Annotated[Path, typer.Option(help="Where --review writes it.")] = Path("review.html"),
    seed: Annotated[int, typer.Option(help="Another seed, another sample for --review.")] = 0,
    verdicts: Annotated[Path | None, typer.Option(help="What the page of --review exported.")] = None,
    precision: Annotated[float, typer.Option(min=0, max=1, help="Precision that thresholds are suggested for.")] = 0.8,
) -> None:
    """Count what a run holds, check its health, and show it."""
    from sgpipe.shards.folder import RunFolder
    from sgpipe.stats.audit import audit
    from sgpipe.stats.database import open_run
    from sgpipe.stats.gallery import cards
    from sgpipe.stats.html import write_report
    from sgpipe.stats.measures import measure
    from sgpipe.stats.review import write_review
    from sgpipe.stats.sheet import write_sheet
    from sgpipe.stats.terminal import print_json, print_tables
    from sgpipe.stats.truth import KnownTruth

    out, err = consoles.output(), consoles.progress()
    if image_data is not None and truth is None:
        raise typer.BadParameter("--image-data says how to find the pictures in Visual Genome: give its --truth, too")
    before = measure(compare, threshold) if compare else None
    with open_run(run) as database:
        if review is not None:
            asked, lost = write_review(database, review_file, review, seed, images)
            err.print(f"wrote {asked} questions to {review_file}{_without(lost)}; open it in a browser", soft_wrap=True)
            return
        drawn = RunFolder(run).truth
        known = KnownTruth(drawn.true, drawn.composed) if drawn else None
        known = KnownTruth(truth, None, image_data) if truth else known
        found = audit(database, threshold, known, verdicts, precision, before)
        gallery = list(cards(database, pictures, threshold, images)) if html else []
    if json_:
        print_json(found)
    else:
        print_tables(found, out)
    if html is not None:
        write_report(html, found, gallery, threshold)
        lost = sum(card.picture is None for card in gallery)
        err.print(f"wrote {html} with {len(gallery)} images in its gallery{_without(lost)}", soft_wrap=True)
    if sheet is not None:
        images_drawn, lost = write_sheet(run, sheet, pictures, threshold, images)
        err.print(f"drew {images_drawn} images into {sheet}{_without(lost)}", soft_wrap=True)


def _without(lost: int) -> str:
    return f", {lost} of them without their picture (--images FOLDER says where it is)" if lost else ""


def score(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder for its shards with scores; an unfinished scoring goes on.")],
    model: Annotated[str, typer.Option(help="open_clip model: a name, hf-hub:ID, or a folder.")] = "ViT-B-32",
    weights: Annotated[str | None, typer.Option(help="Weights of a named model: a file, or a tag.")] = None,
    contrasts: Annotated[int, typer.Option(min=1, help="How many other predicates to compare with.")] = 8,
    images: Annotated[Path | None, typer.Option(help="Picture folder, if the pictures moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Ask CLIP how well relations fit their pictures.

    `sgpipe stats` shows what it says.
    """
    import json

    from sgpipe.clip_agreement import ClipAgreement
    from sgpipe.progress import Progress
    from sgpipe.scoring import frequent_predicates, model_identity, score_run

    out_, err = consoles.output(), consoles.progress()
    predicates = frequent_predicates(run, contrasts)
    identity = {"model": model_identity(model), "weights": model_identity(weights), "contrasts": predicates}
    counts = score_run(
        run, out, lambda: ClipAgreement(model, weights, predicates, device), identity, Progress(err), images
    )
    if json_:
        print(json.dumps(counts))
        return
    out_.print(f"{counts['scored']:,} relations scored, {counts['unscored']:,} without a picture or box to score")
