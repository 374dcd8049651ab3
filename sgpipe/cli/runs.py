"""Commands on existing runs, from `sgpipe stats` to `sgpipe correct`."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.export.formats import BUILT_IN
from sgpipe.utils import console
from sgpipe.utils.console import count, single_line

if TYPE_CHECKING:
    from sgpipe.storage.verify import Verification

_LONGEST_NAME = 200
_Prediction = Literal["vlm_score", "clip_score", "confidence", "none"]
_MERGE_NOTES = (
    ("different", "name", "of several images, whose sizes or files differ; all are kept"),
    ("replaced", "error row", "left out, as another run has the image"),
    ("failed", "error row", "kept, as no run has the image"),
    ("unread", "image file", "cannot be read, and could not be compared"),
    (
        "returned_relations",
        "relation",
        (
            "that a corrected run has no more, from the run that it corrects; --prefer CORRECTED"
            " leaves such ones out"
        ),
    ),
    (
        "overruled_relations",
        "relation",
        "of other runs left out, as the preferred run has the image",
    ),
)


def stats(
    *,
    run: cli.StoredRun,
    json_: cli.Json = False,
    html: Annotated[
        Path | None, cli.writes_file("Write the full report, with a gallery, to this file.")
    ] = None,
    sheet: Annotated[
        Path | None, cli.writes_file("Draw images with their relations into this PNG file.")
    ] = None,
    shown: Annotated[
        int, cli.option("Images in the gallery or on the sheet.", "--shown", min=1)
    ] = 20,
    threshold: Annotated[
        float | None, cli.option("Minimum confidence. Default: 0.2.", min=0, max=1)
    ] = None,
    calibration: cli.CalibrationFile = None,
    precision: Annotated[
        float | None, cli.option("Target precision of thresholds (0.8).", min=0, max=1)
    ] = None,
    images: cli.MovedImages = None,
    compare: Annotated[
        cli.Place | None, cli.reads_stored("Earlier run: show what has changed.")
    ] = None,
    truth: cli.GroundTruthFolder = None,
    image_data: cli.ImageData = None,
    judgements: cli.JudgedFile = None,
    estimate_total: Annotated[
        bool,
        cli.option(
            "Estimate how many relations exist, as if two people missed them independently."
        ),
    ] = False,
    doubts: Annotated[
        int | None,
        cli.option("Let the layout model list this many doubtful annotations and gaps.", min=1),
    ] = None,
) -> None:
    """Count what a run contains, check its health, and show samples.

    Examples:
      sgpipe stats coco-relations/
      sgpipe stats coco-relations/ --html report.html --sheet sheet.png
      sgpipe stats vg/ --doubts 50
    """
    from sgpipe.calibration import load_calibration, probability_for
    from sgpipe.records import TRAINING_CONFIDENCE
    from sgpipe.stats import audit, measures, report
    from sgpipe.storage.index import open_run
    from sgpipe.storage.run_folder import GroundTruth, ground_truth_of

    if image_data is not None and truth is None:
        raise UserError("--image-data needs --truth")
    judgements = cli.judged_file(run, judgements)
    if estimate_total and judgements is None:
        raise UserError(
            "--estimate-total needs --judgements, in which two people answered a recall plan"
        )
    if calibration is not None and precision is not None:
        threshold = probability_for(calibration, precision, threshold)
    least = TRAINING_CONFIDENCE if threshold is None else threshold
    target = 0.8 if precision is None else precision
    probabilities = None if calibration is None else load_calibration(calibration)
    before = measures.measure(compare, least, probabilities) if compare else None
    with open_run(run) as database:
        ground_truth = GroundTruth(truth, None, image_data) if truth else ground_truth_of(run)
        found = audit.audit(
            database,
            least,
            ground_truth,
            judgements,
            target,
            before,
            probabilities,
            estimate_total,
            doubts,
        )
        if not cli.printed_json(json_, found.as_dict()):
            report.print_audit(found, console.output())
        sampled = (database, shown, least, images, probabilities)
        if html is not None:
            drawn, lost = report.write_report(html, found, report.open_samples(*sampled), least)
            cli.say(f"wrote {html} with {count(drawn, 'image')} in its gallery{_missing(lost)}")
        if sheet is not None:
            drawn, lost = report.write_sheet(database, sheet, report.open_samples(*sampled), least)
            cli.say(f"drew {count(drawn, 'image')} into {sheet}{_missing(lost)}")


def _missing(lost: int) -> str:
    return f", {lost} of them without their image (if they moved, pass --images)" if lost else ""


def calibrate(
    run: cli.StoredRun,
    truth: cli.GroundTruthFolder = None,
    judgements: cli.JudgedFile = None,
    image_data: cli.ImageData = None,
    out: Annotated[Path, cli.writes_file("File for the calibration.")] = Path("calibration.json"),
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
    from sgpipe.stats.plans import judge_by_people

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
    run: cli.StoredRun,
    precision: Annotated[
        float, cli.option("The precision to certify, such as 0.95.", min=0, max=1)
    ],
    confidence: Annotated[float, cli.option("How sure the certificate is.", min=0, max=1)] = 0.95,
    by: Annotated[
        Literal["predicate"] | None, cli.option("Certify the relations of each predicate.")
    ] = None,
    is_separate: Annotated[
        bool, cli.option("With --by: how sure each certificate is, not all together.", "--each")
    ] = False,
    threshold: Annotated[
        float | None, cli.option("Minimum confidence. Default: as many as possible.")
    ] = None,
    prediction: Annotated[
        _Prediction | None, cli.option("What predicts wrong relations. Default: by the run.")
    ] = None,
    judgements: cli.JudgedFile = None,
    out: Annotated[
        Path | None, cli.writes_file("File for the certificate. Default: certificate.json in RUN.")
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
    from sgpipe.storage.judgements import CERTIFICATE
    from sgpipe.storage.run_folder import RunFiles, RunFolder, write_result_text

    own = RunFiles(run).judgements
    answers = cli.judged_file(run, judgements) or own
    if out is None and answers.resolve() != own.resolve():
        raise UserError(f"pass --out, too: a certificate in {run} is one of its own judgements")
    if isinstance(run, Path) and RunFolder(run).is_locked:
        raise UserError(
            f"{run} is being written: certify it when it is finished, as more relations need"
            " another plan"
        )
    certificate, groups, unanswered, haste = continue_plan(
        run,
        answers,
        precision=precision,
        confidence=confidence,
        by=by,
        is_separate=is_separate,
        threshold=threshold,
        prediction=prediction,
    )
    if certificate["sets"]:
        write_result_text(out or own.parent / CERTIFICATE, json.dumps(certificate, indent=2) + "\n")
    if certificate["plans_begun"] > 1:
        begun = f"{certificate['plans_begun']} plans of certificates have begun for this run"
        cli.say(f"NOTE: {begun}: each holds with its own confidence, not all of them together")
    if haste:
        cli.say(f"NOTE: {haste}")
    if not cli.printed_json(
        json_, {"certificate": certificate, "groups": groups, "open": unanswered}
    ):
        for line in (line for group in groups for line in group["lines"]):
            cli.show(line)
        if unanswered:
            cli.say(
                f"{count(unanswered, 'open question')}: answer them in `sgpipe view {run}`, on the"
                " page Judge"
            )
    if not certificate["sets"]:
        raise typer.Exit(console.EXIT_FAILED)


def verify(
    run: cli.StoredRun,
    repair: Annotated[
        bool, cli.option("Drop what is damaged; the next run regenerates it.", "--repair")
    ] = False,
    json_: cli.Json = False,
) -> None:
    """Check every byte and every row of a run.

    Lists the problems; the exit code is 1 if there are any.

    Examples:
      sgpipe verify coco-relations/
      sgpipe verify coco-relations/ --repair
    """
    from sgpipe.storage.verify import verify as check

    with console.Progress().images(None, "verifying") as advance:
        verification = check(run, repair=repair, advance=advance)
    if not verification.problems:
        _check_certificate(run, verification, repair)
    if not cli.printed_json(json_, verification.as_json()):
        for problem in verification.problems:
            cli.show(f"{problem.file}: {problem.problem}")
        for done in verification.repairs:
            cli.show(f"{verification.root}: repaired: {done}")
        size = _size(verification.images, verification.shards)
        running = " so far; a run is in progress" if verification.at_work else ""
        if not verification.problems:
            cli.show(f"{verification.root}: {size}, no problems found{running}")
        elif not verification.repaired:
            advice = (
                "--repair drops what is damaged"
                if isinstance(run, Path)
                else "restore it from a copy"
            )
            problems = count(len(verification.problems), "problem")
            cli.show(f"{verification.root}: {problems} in {size}{running}; {advice}")
    if not verification.ok:
        raise typer.Exit(console.EXIT_FAILED)


def _check_certificate(run: Any, verification: Verification, repair: bool) -> None:
    """Add what is wrong with the certificate of a run; `repair`: delete one that is not valid."""
    from sgpipe.storage.judgements import CERTIFICATE
    from sgpipe.storage.run_folder import RunFiles
    from sgpipe.storage.verify import Problem

    file = RunFiles(run).judgements.with_name(CERTIFICATE)
    if not file.is_file():
        return
    try:
        cli.certificate_of(run)
    except UserError as error:
        verification.problems.append(Problem(CERTIFICATE, str(error)))
        if repair:
            file.unlink()
            verification.repairs.append(
                f"deleted {CERTIFICATE}; `sgpipe certify` makes one of the answers"
            )


def _size(images: int, shards: int) -> str:
    return f"{count(images, 'image')} in {count(shards, 'shard')}"


def fetch(
    store: Annotated[
        str, typer.Argument(help="Object store of a run, such as s3://bucket/labels.")
    ],
    out: Annotated[
        Path, cli.writes_folder("Folder for the run; files that are already there are kept.")
    ],
) -> None:
    """Download a run from an object store.

    Other commands read it there, without a copy; only `verify --repair` and
    `generate --truth` need a folder.

    Examples:
      sgpipe fetch s3://bucket/coco --out coco-relations/
    """
    from sgpipe.files.locations import StorePath
    from sgpipe.storage.run_folder import fetch as download

    with console.Progress().images(None, "fetching") as advance:
        manifest = download(StorePath(store), out, advance)
    images = sum(shard.rows for shard in manifest.shards)
    cli.show(f"{out}: {_size(images, len(manifest.shards))}")


def merge(
    runs: Annotated[
        list[cli.Place],
        cli.stored_argument("Folders of runs or imports, or their object stores.", "RUN"),
    ],
    out: Annotated[
        Path, cli.writes_folder("Folder for the merged run; an unfinished one is resumed.")
    ],
    match: Annotated[
        Literal["file", "id", "hash"], cli.option("What images of several runs have in common.")
    ] = "file",
    iou: Annotated[
        float, cli.option("IoU from which boxes of a class are one object.", min=0.1, max=1)
    ] = 0.6,
    prefer: Annotated[
        cli.Place | None, cli.reads_stored("RUN whose relations count alone for its images.")
    ] = None,
    images: cli.MovedImages = None,
    json_: cli.Json = False,
) -> None:
    """Merge runs: objects and relations of the same images are united.

    Images of only one run are taken over. The order of the runs does not matter.
    With --prefer, images of that run have its relations and no others.

    Examples:
      sgpipe merge annotated/ coco-relations/ --out merged/
      sgpipe merge corrected/ coco-relations/ --prefer corrected/ --out merged/
      sgpipe merge vg/ coco/ s3://bucket/labels --match hash --out merged/
    """
    from sgpipe.generation.merging import MERGED, UNITED, merge_runs
    from sgpipe.storage.manifest import add_up

    if len(runs) < 2:
        raise UserError("merge needs two runs or more: sgpipe merge RUN RUN --out NEW")
    manifest = merge_runs(runs, out, console.Progress(), match, iou, images, prefer)
    summary = add_up(manifest, 0, {})
    counts = summary.counts
    cli.say_losses(summary.losses)
    matched: dict[str, int] = manifest.run["matched"]
    united = {what: counts[f"{MERGED}{what}"] for what in UNITED}
    if cli.printed_json(
        json_, {"root": str(out), "shards": len(manifest.shards)} | matched | united
    ):
        return
    counted = ", ".join(
        f"{number:,} {what.replace('_', ' ')}" for what, number in united.items() if number
    )
    size = (
        f"{count(matched['images'], 'image')}, {matched['shared']:,} of them in several runs (by"
        f" {match})"
    )
    cli.show(f"{out}: {size}; {counted or 'nothing united'}")
    if not matched["shared"]:
        cli.say(
            "NOTE: no image is in two runs, so they are only put together; --match says how images"
            " are compared"
        )
    numbers = matched | united
    for what, noun, note in _MERGE_NOTES:
        if numbers.get(what):
            cli.say(f"NOTE: {count(numbers[what], noun)} {note}")
    splits = {split for run in manifest.run["runs"].values() for split in run["images"]}
    for split in sorted({*manifest.run["images"]} - splits):
        place = manifest.run["images"][split]
        cli.say(
            f"NOTE: split {split} has the images in {place}, and those with an id that the split"
            " has already"
        )


@dataclass(frozen=True, kw_only=True)
class WrittenOptions:
    """Which relations a dataset for others gets, and whether it gets the images."""

    threshold: Annotated[
        float | None, cli.option("Minimum confidence. Default: 0.2; hf: none.", min=0, max=1)
    ] = None
    calibration: cli.CalibrationFile = None
    precision: cli.ExpectedPrecision = None
    certified: cli.Certified = False
    embed: Annotated[
        bool, cli.option("Store images in rows, in tasks or in the folder.", "--embed")
    ] = False
    images: cli.MovedImages = None

    def as_arguments(self, run: Any) -> dict[str, Any]:
        """Return the arguments of `export_run` and `push_run`. Raises UserError: the certificate is
        not valid.
        """
        certificate = cli.certificate_of(run) if self.certified else None
        return {name: value for name, value in vars(self).items() if name != "certified"} | {
            "certificate": certificate
        }


def export(
    *,
    run: cli.StoredRun,
    to: Annotated[str, cli.option(f"Format: {', '.join(BUILT_IN)}.")],
    out: Annotated[Path, cli.writes_folder("New folder for the files.")],
    origin: Annotated[
        str | None, cli.option("Only these, such as person,tagger. Default: all.")
    ] = None,
    relations: WrittenOptions,
    images_url: Annotated[
        str | None, cli.option("Start of addresses of images: https://….")
    ] = None,
    coordinates: Annotated[
        Literal["pixel", "normalised", "0-1000"], cli.option("Of boxes in instructions.")
    ] = "pixel",
    templates: Annotated[
        Path | None, cli.reads_file("YAML: other templates of instructions.", panel=None)
    ] = None,
    seed: cli.Seed = None,
    parquet: Annotated[
        bool, cli.option("Instructions as Parquet, not JSON lines.", "--parquet")
    ] = False,
    json_: cli.Json = False,
) -> None:
    """Convert a run to another format.

    For the Hugging Face hub, COCO tools, scene-graph models, RLIPv2, HICO-DET,
    Label Studio, FiftyOne or the training of vision-language models.

    Examples:
      sgpipe export coco-relations/ --to hf --embed --out for-the-hub/
      sgpipe export coco-relations/ --to rlipv2 --threshold 0.2 --out rlipv2/
      sgpipe export coco-relations/ --to label-studio --out for-label-studio/
      sgpipe export coco-relations/ --to instructions --calibration calibration.json --precision 0.9
      --out instructions/
    """
    from sgpipe.export.run import export_run
    from sgpipe.records import ORIGINS

    how: dict[str, Any] = {
        "images_url": images_url,
        "coordinates": coordinates,
        "templates": templates,
    }
    how |= {
        "seed": seed,
        "parquet": parquet,
        "origins": ORIGINS if origin is None else origin.split(","),
    }
    written = export_run(run, to, out, **how, **relations.as_arguments(run))
    if written.note:
        cli.say(f"NOTE: {written.note}")
    if cli.printed_json(json_, vars(written) | {"root": str(out)}):
        return
    cli.show(f"wrote {count(len(written.files), 'file')} to {out}")
    for what, number in written.left_out.items():
        cli.show(f"left out: {what} ({number:,})")


def push(
    *,
    source: Annotated[
        cli.Place, cli.stored_argument("Folder or store of a run, a model or a training.")
    ],
    to: Annotated[str, cli.option("Dataset or model on the hub: USER/NAME or ORGANISATION/NAME.")],
    public: Annotated[
        bool, cli.option("Make what is new public. Default: private.", "--public")
    ] = False,
    relations: WrittenOptions,
    licence: Annotated[
        str | None, cli.option("Of a model, such as apache-2.0.", "--license")
    ] = None,
    evaluations: Annotated[
        list[Path] | None, cli.option("By `eval --json-file`.", "--evaluation", exists=True)
    ] = None,
    json_: cli.Json = False,
) -> None:
    """Upload a run to the Hugging Face hub as a dataset, or a model as a model, with a card.

    A run is exported as by `export --to hf`. The same command continues an
    interrupted upload.

    Examples:
      sgpipe push coco-relations/ --to anna/coco-relations
      sgpipe push coco-relations/ --to anna/coco-relations --embed --threshold 0.2 --public
      sgpipe push tagger/ --to anna/tagger --license apache-2.0
    """
    if console.QUIET not in os.environ:  # an upload may take hours
        os.environ.pop(
            "HF_HUB_DISABLE_PROGRESS_BARS", None
        )  # set for commands that load models; read at import
        import huggingface_hub

        huggingface_hub.logging.set_verbosity_info()
    from sgpipe.export.push import push_model, push_run
    from sgpipe.files.locations import info_of
    from sgpipe.files.model_cache import local_model
    from sgpipe.recipe import network_folder
    from sgpipe.storage.manifest import MANIFEST

    is_stored = not isinstance(source, Path)
    if info_of(source / MANIFEST) is None and (
        is_stored or (network_folder(source) / "config.json").is_file()
    ):
        if relations != WrittenOptions():
            raise UserError(
                f"{source} is a model: only --public, --license and --evaluation are for models"
            )
        folder = network_folder(Path(local_model(str(source))))
        pushed = push_model(
            folder, to, public=public, licence=licence, evaluations=evaluations or ()
        )
    elif licence or evaluations:
        raise UserError("--license and --evaluation are for models")
    else:
        pushed = push_run(source, to, public=public, **relations.as_arguments(source))
    if cli.printed_json(json_, pushed.as_json()):
        return
    seen = "private: only you or your organisation can see it" if pushed.private else "public"
    cli.show(f"pushed {count(len(pushed.files), 'file')} to {pushed.url} ({seen})")
    if pushed.exported is not None:
        if pushed.exported.note:
            cli.say(f"NOTE: {pushed.exported.note}")
        for what, number in pushed.exported.left_out.items():
            cli.show(f"left out: {what} ({number:,})")


def view(
    run: cli.StoredRun,
    other: Annotated[
        cli.Place | None, cli.stored_argument("A second one, to compare with.")
    ] = None,
    port: Annotated[
        int, cli.option("Port, or the next free one. 0: any.", min=0, max=65535)
    ] = 8765,
    host: Annotated[
        str | None, cli.option("Address, such as 0.0.0.0; prints a token. Default: 127.0.0.1.")
    ] = None,
    no_browser: Annotated[bool, cli.option("Do not open a browser.", "--no-browser")] = False,
    read_only: Annotated[bool, cli.option("Accept no judgements.", "--read-only")] = False,
    name: Annotated[
        str | None, cli.option("Your name in judgements. Default: that of your account.", "--as")
    ] = None,
    images: cli.MovedImages = None,
) -> None:
    """Search, see, judge and correct relations in the browser.

    Works offline, also on a run in progress. Judgements are appended to
    judgements.jsonl in the run's folder. Ctrl-C ends the server.

    Examples:
      sgpipe view coco-relations/
      sgpipe view coco-relations/ earlier-relations/ --as anna
      sgpipe view s3://bucket/coco --read-only --no-browser
    """
    import getpass
    import secrets
    import socket

    from sgpipe.files.locations import absolute_location
    from sgpipe.storage.index import Index
    from sgpipe.storage.judgements import JudgementLog
    from sgpipe.view import app
    from sgpipe.view.pages import Viewer

    if name is None:
        with suppress(OSError, KeyError):  # in a container, the user may have none
            name = getpass.getuser()
    elif not single_line(name):
        raise UserError(f"--as {name!r} is not a name")
    judge = single_line(name or "", _LONGEST_NAME) or "anonymous"
    opened = []
    for root in (run, other) if other is not None else (run,):
        opened.append(index := Index(root, console.Progress()))
        cli.say(f"{root}: {count(index.images, 'image')}, {count(index.relations, 'relation')}")
        for problem in index.problems:
            cli.say(f"left out: {problem}")
    judgements = JudgementLog(opened[0].files.judgements, opened[0].fingerprint)
    title = str(opened[0].run.get("name") or absolute_location(run).name)
    viewer = Viewer(
        title, opened[0], judgements, opened[1] if other else None, judge, read_only, images
    )
    address = app.listen(host or app.LOCAL, port)
    token = secrets.token_urlsafe(24) if host else None
    names = {address.host, socket.gethostname(), socket.getfqdn()}
    url = address.url(token)
    cli.show(url)
    if token is not None:
        may_judge = "" if read_only else " and judge relations"
        cli.say(f"keep this address secret: whoever has it can see the run{may_judge}")
    cli.say("Ctrl-C ends the server")
    if not no_browser:
        app.open_browser(url)
    app.serve(app.create_app(viewer, names, token), address)
    file = viewer.judgements.file
    cli.say(f"stopped; judgements are in {file}" if file.exists() else "stopped")


def correct(
    run: cli.StoredRun,
    out: Annotated[
        Path, cli.writes_folder("Folder for the corrected run; an unfinished one is resumed.")
    ],
    judgements: Annotated[
        Path | None, cli.reads_file("Judgements. Default: those of the run.")
    ] = None,
    conflicts: Annotated[
        Literal["majority", "latest", "drop"], cli.option("If people differ.")
    ] = "majority",
    images: cli.MovedImages = None,
    json_: cli.Json = False,
) -> None:
    """Apply the judgements of `sgpipe view` to a run.

    Writes a copy in which confirmed, changed and added relations have no
    confidence, like annotated ones, and wrong ones are gone.

    Examples:
      sgpipe correct coco-relations/ --out corrected/
      sgpipe correct coco-relations/ --judgements judgements.jsonl --conflicts latest --out
      corrected/
    """
    from sgpipe.sources.corrected import correct_run
    from sgpipe.storage.judgements import JudgementLog
    from sgpipe.storage.run_folder import RunFiles

    files = RunFiles(run)
    if files.problems:
        raise UserError(files.problems[0])
    fingerprint = str(files.manifest.run.get("fingerprint", ""))
    log = JudgementLog(judgements or files.judgements, fingerprint)
    for problem in log.problems:
        cli.say(f"NOTE: {problem}")
    corrected = correct_run(
        files.manifest, files.storage, log, out, console.Progress(), conflicts, images
    )
    if cli.printed_json(json_, vars(corrected)):
        return
    done = ", ".join(f"{number:,} {what}" for what, number in corrected.counts.items() if number)
    size = _size(corrected.images, corrected.shards)
    cli.show(f"{corrected.root}: {size}; relations: {done or 'none corrected'}")
    if corrected.conflicts:
        cli.say(
            f"NOTE: people differ on {count(corrected.conflicts, 'relation')}; --conflicts says"
            " what counts"
        )
    if corrected.missing:
        cli.say(
            f"NOTE: {count(corrected.missing, 'judged relation')} left out: the run does not have"
            " them"
        )
