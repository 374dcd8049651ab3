"""`sgpipe stats`: what a run holds, as tables, JSON, images and pages.

`sgpipe verify`: whether a run is as it was written.

`sgpipe fetch`: a run in an object store, as a folder.

`sgpipe export`: a run in the forms that other programs read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgpipe.utils import console

if TYPE_CHECKING:
    from sgpipe.storage.verify import Verification


def stats(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    html: Annotated[Path | None, typer.Option(help="HTML file for the whole report, with a gallery.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="PNG to draw images with their relations into.")] = None,
    shown: Annotated[
        int, typer.Option("--shown", "--images", min=1, help="How many images in the gallery or on the sheet.")
    ] = 20,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Confidence of the relations that are checked and drawn.")
    ] = 0.2,
    images: Annotated[Path | None, typer.Option(help="Image folder, if the images moved.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Another run: what changed since it.")] = None,
    truth: Annotated[
        Path | None, typer.Option(help="Shards of the truth, such as `sgpipe import` makes; known of drawn images.")
    ] = None,
    image_data: Annotated[
        Path | None, typer.Option(help="Visual Genome's image_data.json, if that is the truth of COCO's images.")
    ] = None,
    review: Annotated[int | None, typer.Option(min=1, help="Write a page on which to judge so many relations.")] = None,
    review_file: Annotated[Path, typer.Option(help="Where --review writes it.")] = Path("review.html"),
    seed: Annotated[int, typer.Option(help="Another seed, another sample for --review.")] = 0,
    verdicts: Annotated[Path | None, typer.Option(help="What the page of --review exported.")] = None,
    precision: Annotated[float, typer.Option(min=0, max=1, help="Precision that thresholds are suggested for.")] = 0.8,
) -> None:
    """Count what a run holds, check its health, and show it."""
    from sgpipe.stats.audit import audit
    from sgpipe.stats.gallery import cards
    from sgpipe.stats.ground_truth import KnownTruth
    from sgpipe.stats.html import write_report
    from sgpipe.stats.measures import measure
    from sgpipe.stats.review import write_review
    from sgpipe.stats.samples import write_sheet
    from sgpipe.stats.terminal import print_json, print_tables
    from sgpipe.storage.database import open_run
    from sgpipe.storage.run_folder import RunFolder

    out, err = console.output(), console.progress()
    if image_data is not None and truth is None:
        raise typer.BadParameter("--image-data says how to find the images in Visual Genome: give its --truth, too")
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
        gallery = list(cards(database, shown, threshold, images)) if html else []
    if json_:
        print_json(found)
    else:
        print_tables(found, out)
    if html is not None:
        write_report(html, found, gallery, threshold)
        lost = sum(card.image is None for card in gallery)
        err.print(f"wrote {html} with {len(gallery)} images in its gallery{_without(lost)}", soft_wrap=True)
    if sheet is not None:
        images_drawn, lost = write_sheet(run, sheet, shown, threshold, images)
        err.print(f"drew {images_drawn} images into {sheet}{_without(lost)}", soft_wrap=True)


def _without(lost: int) -> str:
    return f", {lost} of them without their image (--images FOLDER says where it is)" if lost else ""


def score(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder for its shards with scores; an unfinished scoring goes on.")],
    model: Annotated[str, typer.Option(help="open_clip model: a name, hf-hub:ID, or a folder.")] = "ViT-B-32",
    weights: Annotated[str | None, typer.Option(help="Weights of a named model: a file, or a tag.")] = None,
    contrasts: Annotated[int, typer.Option(min=1, help="How many other predicates to compare with.")] = 8,
    images: Annotated[Path | None, typer.Option(help="Image folder, if the images moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Ask CLIP how well relations fit their images.

    `sgpipe stats` shows what it says.
    """
    import json

    from sgpipe.generation.clip_agreement import ClipAgreement
    from sgpipe.generation.scoring import frequent_predicates, model_identity, score_run
    from sgpipe.utils.console import Progress

    out_, err = console.output(), console.progress()
    predicates = frequent_predicates(run, contrasts)
    identity = {"model": model_identity(model), "weights": model_identity(weights), "contrasts": predicates}
    counts = score_run(
        run, out, lambda: ClipAgreement(model, weights, predicates, device), identity, Progress(err), images
    )
    if json_:
        print(json.dumps(counts))
        return
    out_.print(f"{counts['scored']:,} relations scored, {counts['unscored']:,} without an image or box to score")


EXIT_FAULTY = 1


def verify(
    run: Annotated[Path, typer.Argument(help="Folder of a run, an import or a scoring.")],
    repair: Annotated[bool, typer.Option("--repair", help="Drop what is bad, so that the next run redoes it.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a run byte for byte and row for row.

    Exit code 1 and a list if anything is off.
    """
    import json

    from sgpipe.storage.verify import verify as check
    from sgpipe.utils.console import Progress

    out = console.output()
    with Progress(console.progress()).images(None, "verifying") as advance:
        found = check(run, repair=repair, advance=advance)
    if json_:
        print(json.dumps(found.as_json(), indent=2))
    else:
        for problem in found.problems:
            out.print(f"{problem.file}: {problem.problem}", soft_wrap=True)
        out.print(_last_line(found), soft_wrap=True)
    if not found.ok:
        raise typer.Exit(EXIT_FAULTY)


def _last_line(found: Verification) -> str:
    size = f"{found.images:,} images in {found.shards:,} shards"
    work = " so far; a run is at work" if found.at_work else ""
    if not found.problems:
        return f"{found.root}: {size}, all as written{work}"
    if found.repaired:
        return f"{found.root}: repaired. The same command as before makes again what is missing."
    return f"{found.root}: {len(found.problems):,} problems in {size}{work}; --repair drops what is bad"


def fetch(
    store: Annotated[str, typer.Argument(help="Where a run put its shards, such as s3://bucket/labels.")],
    out: Annotated[Path, typer.Option(help="Folder for the run; what is in it already is not fetched again.")],
) -> None:
    """Bring a run out of an object store.

    What needs its shards works then: stats, verify, export, train.
    """
    from sgpipe.storage.mirror import fetch as run
    from sgpipe.storage.storage import Store
    from sgpipe.utils.console import Progress

    with Progress(console.progress()).images(None, "fetching") as advance:
        manifest = run(Store(store), out, advance)
    images = sum(shard.rows for shard in manifest.shards)
    console.output().print(f"{out}: {images:,} images in {len(manifest.shards):,} shards", soft_wrap=True)


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run or an import.")],
    to: Annotated[str, typer.Option(help="hf (Hugging Face), coco, coco-rel (RelTR), vg, rlipv2 or hico.")],
    out: Annotated[Path, typer.Option(help="New folder for the files.")],
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Least confidence of relations; 0.2, and for hf none, if it is not given."),
    ] = None,
    embed: Annotated[bool, typer.Option("--embed", help="Put the images into the rows (hf).")] = False,
    images: Annotated[Path | None, typer.Option(help="Image folder for --embed, if the images moved.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a run in another form.

    For the hub, COCO tools, scene-graph trainings, RLIPv2's or HICO-DET's.
    """
    import json

    from sgpipe.export.run import export_run

    written = export_run(run, to, out, threshold=threshold, images=images, embed=embed)
    if json_:
        print(json.dumps(written.as_json(), indent=2))
        return
    screen = console.output()
    screen.print(f"wrote {len(written.files):,} files into {out}", soft_wrap=True)
    for what, count in written.left_out.items():
        screen.print(f"left out: {count:,} {what}", soft_wrap=True)
