"""Commands that label images: `sgpipe generate` many, `sgpipe label` a few. `miniworld` and `parse`
do parts of it.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sgpipe.cli import STARTED
from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils import LARGEST_SEED, console
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from sgpipe.recipe import Recipe, SourceConfig

_DRAWN = re.compile(r".*\.relations(-\d+)?\.png", re.DOTALL)


_RecipeName = Annotated[
    str | None, typer.Argument(help="Packaged recipe (default: miniworld) or YAML file.")
]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """The images to label, and what is known of them, instead of those of the recipe."""

    root: Annotated[
        cli.Place | None, cli.reads_stored("Folder or store that the recipe's paths are in.")
    ] = None
    images: Annotated[
        str | None, cli.option("Folder, .zip, .tar, folder of these, or s3://….", panel=cli.DATA)
    ] = None
    dataset: Annotated[
        str | None, cli.option("Recipe hub: folder of Parquet files, or hub id.", panel=cli.DATA)
    ] = None
    annotations: Annotated[
        cli.Place | None, cli.reads_stored("Annotation file for --images.", exists=False)
    ] = None
    captions: Annotated[
        cli.Place | None, cli.reads_stored("COCO captions; no captioner runs.", exists=False)
    ] = None
    split: cli.GuessedSplit = None
    truth: Annotated[
        cli.Place | None, cli.reads_stored("Ground truth; prints precision and recall.")
    ] = None
    image_data: cli.ImageData = None
    certified: cli.Certified = False

    def applied_to(self, source: SourceConfig, extend: str | None = None) -> SourceConfig:
        """Return the source, or the run `extend` as one, with these settings. Raises UserError: one
        needs another.
        """
        from sgpipe.files.image_roots import check_images, located
        from sgpipe.files.locations import absolute_location, content_id
        from sgpipe.recipe import WHOLE
        from sgpipe.sources.annotated import infer_split
        from sgpipe.sources.opening import open_parent
        from sgpipe.utils.config_file import changed

        if extend is not None:
            if any((self.root, self.dataset, self.annotations, self.captions, self.split)):
                omitted = "--root, --dataset, --annotations, --captions, --split"
                raise UserError(f"--extend takes the run's data: omit {omitted}")
            moved = {
                shard.split: {"images": self.images}
                for shard in open_parent(extend).manifest.shards
            }
            least = cli.certified_threshold([extend]) if self.certified else source.threshold
            values = {"format": "run", "run": absolute_location(extend), "threshold": least}
            source = type(source).model_validate(values | {"splits": moved if self.images else {}})
        elif self.certified:
            raise UserError("--certified says what --extend keeps of a run: pass --extend, too")
        if self.dataset is not None and source.format != "hub":
            raise UserError(
                "--dataset is for the recipe hub: sgpipe generate hub --dataset FOLDER_OR_ID"
            )
        needy = (self.annotations, self.captions, None if self.dataset else self.split)
        if self.images is None and any(option is not None for option in needy):
            raise UserError("--annotations, --captions and --split need --images")
        source = changed(
            source,
            root=self.root,
            hub=changed(
                source.hub, dataset=self.dataset, split=self.split if self.dataset else None
            ),
            ground_truth=self.truth and absolute_location(self.truth),
            image_data=self.image_data and absolute_location(self.image_data),
        )
        if self.images is None or extend is not None:
            return source
        name = self.split or WHOLE
        if self.split is None and self.annotations is not None and source.format != "folder":
            check_images(located(self.images, source.root))  # what is missing names no split
            content_id(source.path(self.annotations))
            name = infer_split(self.annotations, self.images)
        split = {"annotations": self.annotations, "images": self.images, "captions": self.captions}
        return changed(source, splits={name: split})


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Models and settings, instead of those of the recipe."""

    detector: cli.Detector = None
    captioner: cli.Captioner = None
    tagger: cli.Tagger = None
    threshold: cli.MinConfidence = None
    calibration: cli.CalibrationFile = None
    precision: cli.ExpectedPrecision = None
    limit: cli.Limit = None
    seed: cli.Seed = None
    ray_address: cli.RayAddress = None
    assign: cli.Settings = None

    def applied_to(
        self,
        recipe: str | None,
        data: SourceOptions,
        parent: str | None = None,
        extend: str | None = None,
        **how: Any,
    ) -> Recipe:
        """Return the recipe, or that of a parent or extended run, changed so; `how`: its engine.
        Raises UserError.
        """
        from sgpipe.recipe import load_recipe
        from sgpipe.utils.config_file import changed, parse_set

        settings = _with_tagger(recipe, self.tagger, parse_set(self.assign or []))
        if data.images and recipe is None and parent is not None:
            settings = {"source.root": None, **settings}
        if parent is not None and extend is not None:
            raise UserError(
                "--from takes stages over from a run, --extend relations: pass one of them"
            )
        if recipe is None and (parent or extend):
            from sgpipe.generation.identity import extended_recipe, parent_recipe

            if self.captioner is not None:
                settings = {"caption.captioner": self.captioner, **settings}
            loaded = (
                extended_recipe(extend, settings)
                if extend
                else parent_recipe(str(parent), settings)
            )
        else:
            loaded = load_recipe(recipe or "miniworld", settings)
        caption = changed(loaded.caption, captioner=self.captioner)
        tag = loaded.tag
        if self.threshold is not None:
            if self.precision is not None:
                raise UserError("--threshold and --precision both choose the relations; pass one")
            tag = tag.model_copy(update={"precision": None})
        replaces_layout = (
            self.tagger and loaded.tag.method == "layout" and "tag.method" not in settings
        )
        return changed(
            loaded,
            limit=self.limit,
            seed=self.seed,
            source=data.applied_to(loaded.source, extend),
            detect=changed(loaded.detect, detector=self.detector),
            caption=caption.model_copy(update={"captioner": None}) if data.captions else caption,
            tag=changed(
                tag,
                threshold=self.threshold,
                method="auto" if replaces_layout else None,
                tagger=self.tagger,
                calibration=self.calibration,
                precision=self.precision,
            ),
            engine=changed(loaded.engine, address=self.ray_address, **how),
        )


def generate(
    *,
    recipe: _RecipeName = None,
    out: Annotated[
        Path | None, cli.writes_folder("Folder for the shards, resumed. Default: NAME-relations.")
    ] = None,
    store: Annotated[
        str | None, cli.option("Object store for the shards (s3://…); the rest is in --out.")
    ] = None,
    parent: Annotated[
        str | None, cli.option("Run to take over.", "--from", callback=cli.stored)
    ] = None,
    extend: Annotated[
        str | None, cli.option("Run or import to extend.", "--extend", callback=cli.stored)
    ] = None,
    data: SourceOptions,
    options: RecipeOptions,
    retry_failed: Annotated[
        bool, cli.option("Label the images of error rows again.", "--retry-failed")
    ] = False,
    metrics: Annotated[
        Path | None, cli.writes_file("File for a line of JSON each minute: images, errors, …")
    ] = None,
    json_: cli.Json = False,
) -> None:
    """Label the images of a dataset or a folder with relations.

    Without arguments, generates 200 synthetic images and labels them with the
    tiny models that ship with sgpipe.

    Examples:
      sgpipe generate
      sgpipe generate coco --root datasets/coco --tagger tagger/ --out coco-relations/
      sgpipe generate folder --images photos/ --tagger tagger/ --out photo-relations/
      sgpipe generate hub --dataset cppe-5 --split train --tagger tagger/ --out cppe-relations/
      sgpipe generate coco --root datasets/coco --tagger tagger/ --out run/ --store s3://bucket/coco
      sgpipe generate --from coco-relations/ --tagger other-tagger/ --out retagged/
      sgpipe generate photos --extend vg/ --tagger tagger/ --out vg-extended/
    """
    if out is None and (parent or extend):
        raise UserError(
            f"{'--from' if parent else '--extend'} needs --out, the folder of the new run"
        )
    loaded = options.applied_to(recipe, data, parent, extend, store=store)
    out = out or Path(f"{loaded.name}-relations")
    # Modules that take long to import come as late as possible.
    from sgpipe.generation.metrics import print_summary
    from sgpipe.generation.run import generate as run
    from sgpipe.records import TRAINING_CONFIDENCE

    with redirect_stdout(
        sys.stderr
    ):  # Ray prints what happens to its machines; standard output is for results
        summary = run(
            loaded,
            out,
            console.Progress(),
            retry_failed=retry_failed,
            parent=parent,
            metrics=metrics,
        )
    from sgpipe.evaluation.label_quality import print_run_quality, run_quality

    threshold = (
        max(TRAINING_CONFIDENCE, loaded.tag.threshold) if loaded.tag.calibration is None else 0.0
    )
    quality = run_quality(summary.root, threshold) if loaded.engine.store is None else {}
    if json_:
        measured = {name: asdict(each.at_threshold) for name, each in quality.items()}
        print(console.json_text(summary.as_json() | ({"quality": measured} if measured else {}), 2))
    else:
        print_summary(summary, console.output())
        if quality:
            print_run_quality(quality, console.output())
    cli.say_losses(summary.losses)
    if summary.counts["images"] and summary.counts["images"] == summary.counts["errors"]:
        raise typer.Exit(console.EXIT_ALL_FAILED)


def plan(
    *,
    recipe: _RecipeName = None,
    data: SourceOptions,
    options: RecipeOptions,
    sample: Annotated[
        int | None, cli.option("Images to label; fewer if they take a minute.", min=1)
    ] = None,
    machines: Annotated[int, cli.option("Number of machines like this one.", min=1)] = 1,
    gpus: Annotated[
        int | None, cli.option("GPUs of each machine; default: as many as here.", min=1)
    ] = None,
    price: Annotated[
        float | None, cli.option("Price of a machine-hour.", "--price-per-hour", min=0, max=1e9)
    ] = None,
    price_per_token: Annotated[
        float | None, cli.option("Price of a token of an endpoint.", min=0, max=1e9)
    ] = None,
    json_: cli.Json = False,
) -> None:
    """Tell how long `generate` will take, and what for, from labelling a sample.

    Takes the recipe and the options of `generate`; keeps nothing. Without
    --sample it labels 64 images, or up to 256 to keep a served model busy.

    Examples:
      sgpipe plan coco --root datasets/coco --tagger tagger/
      sgpipe plan coco --root datasets/coco --tagger tagger/ --machines 8 --gpus 4 --price-per-hour
      12
    """
    from sgpipe.generation.plan import plan as measure
    from sgpipe.generation.plan import print_plan

    loaded = options.applied_to(recipe, data)
    with redirect_stdout(sys.stderr):
        found = measure(loaded, console.Progress(), sample, began=STARTED)
    values = (found.with_gpus(gpus) if gpus else found).as_json(machines, price, price_per_token)
    if not cli.printed_json(json_, values):
        print_plan(values, console.output())


def _with_tagger(
    recipe: str | None, tagger: str | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the settings; a tagger or layout model, with its own threshold, replaces the CLIP of
    the recipe photos.
    """
    from sgpipe.recipe import TagConfig

    replaced = {"tag.method": "auto", "tag.prior": None, "tag.threshold": TagConfig().threshold}
    return replaced | settings if tagger and recipe == "photos" else settings


def miniworld(
    out: Annotated[
        Path, cli.writes_folder("Folder for images and annotations (COCO, VG, HICO-DET).")
    ],
    number: Annotated[int, cli.option("Number of images.", "--count", min=1)] = 200,
    seed: Annotated[int, cli.option("Random seed.", min=0, max=LARGEST_SEED)] = 0,
    split: Annotated[
        Literal["train", "val", "test-compositional"], cli.option("Split to generate.")
    ] = "val",
) -> None:
    """Generate a synthetic dataset with exact ground truth.

    The folder appears complete or not at all. One that contains another
    dataset is refused.

    Examples:
      sgpipe miniworld --count 200 --out miniworld/
    """
    from sgpipe.sources.miniworld import render_dataset

    with console.Progress().images(number, "generating") as advance:
        is_new = render_dataset(out, number, seed, split, progress=lambda: advance(1, {}))
    images = count(number, "image")
    cli.show(
        f"generated {images} in {out}"
        if is_new
        else f"nothing to do: {out} already has all {images}"
    )


def parse(
    parser: Annotated[
        Literal["rules", "learned", "seq2seq", "llm"], cli.option("Parser.")
    ] = "rules",
    model: Annotated[
        str | None, cli.option("spaCy's model (default: the best one), folder, hub id or name.")
    ] = None,
    endpoint: Annotated[
        str | None, cli.option("llm: URL of an OpenAI chat API. Key: OPENAI_API_KEY.")
    ] = None,
) -> None:
    """Turn captions into triplets.

    Reads one caption per line from standard input, prints one line of JSON for each.

    Examples:
      sgpipe parse < captions.txt
      sgpipe parse --parser learned < captions.txt
    """
    from sgpipe.recipe import ParseConfig
    from sgpipe.stages.parse.stage import CaptionParser, parse_lines

    if sys.stdin is None:
        raise UserError("standard input is closed; `parse` reads one caption per line from it")
    captions = CaptionParser(ParseConfig(parser=parser, model=model, endpoint=endpoint))
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    for result in parse_lines(sys.stdin, captions):
        print(console.json_text(result))


def label(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.", exists=True)],
    out: Annotated[Path, cli.writes_folder("Folder for images with drawn relations.")] = Path(
        "labelled"
    ),
    boxes: Annotated[
        Path | None, cli.reads_file("COCO instances file with boxes; no detector runs.")
    ] = None,
    detector: cli.Detector = None,
    captioner: cli.Captioner = None,
    tagger: cli.Tagger = None,
    recipe: Annotated[
        str, cli.option("Models and settings; miniworld for its images.", panel=cli.MODELS)
    ] = "photos",
    threshold: Annotated[
        float, cli.option("Minimum confidence of the relations shown.", min=0, max=1)
    ] = 0.2,
    assign: cli.Settings = None,
    json_: Annotated[
        bool, cli.option("Print JSON: one line per image, with everything.", "--json")
    ] = False,
) -> None:
    """Find the relations in images, print them, and draw them. No annotations are needed.

    The default recipe uses models of the Hugging Face hub, downloaded on first
    use. With it, --tagger replaces CLIP by an R-Tagger.

    Examples:
      sgpipe label photos/
      sgpipe label a.jpg --boxes boxes.json
      sgpipe label miniworld/images --recipe miniworld
    """
    from sgpipe.files.hub import fetch_models, find_models, missing_models
    from sgpipe.recipe import hub_models, load_recipe, recipe_notes
    from sgpipe.utils.atomic import atomic_write
    from sgpipe.utils.config_file import parse_set

    files = list(_files(images, out))
    settings = _with_tagger(recipe, tagger, parse_set(assign or []))
    if boxes is not None and recipe == "photos":
        settings = {"ground.detector": None, **settings}
    own = any((detector, captioner, tagger, assign))
    fetch_command = "" if own else f"sgpipe doctor --recipe {recipe} --fetch"
    skipped = () if boxes is None else ("detect",)
    models = {"detect.detector": detector, "caption.captioner": captioner, "tag.tagger": tagger}
    changes = {key: value for key, value in models.items() if value is not None} | settings
    find_models(missing_models(hub_models(load_recipe(recipe, changes), skipped)), fetch_command)
    from sgpipe.pipeline import Pipeline  # it imports PyTorch: what is missing is said before

    pipeline = Pipeline(
        recipe,
        detector=detector,
        captioner=captioner,
        tagger=tagger,
        boxes=boxes,
        settings=settings,
    )
    for note in recipe_notes(pipeline.recipe, detects=boxes is None):
        cli.say(f"NOTE: {note}")
    missing = missing_models(hub_models(pipeline.recipe, skipped))
    if missing:
        fetch_models(missing, fetch_command)
    failed = 0
    named = Counter[str]()
    out.mkdir(parents=True, exist_ok=True)
    for file, graph in zip(files, pipeline.label(files), strict=True):
        named[file.name] += 1
        number = "" if named[file.name] == 1 else f"-{named[file.name]}"
        drawing = out / f"{file.name}.relations{number}.png"  # not the name of any image
        failed += graph.error is not None
        if graph.error is None:
            with atomic_write(drawing) as temporary:
                graph.draw(threshold).save(temporary, "PNG")
        if json_:
            print(console.json_text(graph.as_json()))
            continue
        triplets = graph.triplets(threshold)
        counts = (
            f"{count(len(graph.objects), 'object')}, {count(len(triplets), 'relation')} → {drawing}"
        )
        cli.show(console.single_line(f"{file}: {graph.error or counts}"))
        for subject, predicate, object_, confidence in triplets:
            score = "" if confidence is None else f"{confidence:.2f}  "
            cli.show(f"  {score}{console.single_line(f'{subject} · {predicate} · {object_}')}")
    if failed == len(files):
        raise typer.Exit(console.EXIT_ALL_FAILED)


def _files(images: list[Path], out: Path) -> Iterator[Path]:
    """Yield the images, also those in folders, not drawings in `out`. Raises UserError: a folder
    has none.
    """
    from sgpipe.files.roots import FolderRoot
    from sgpipe.sources.opening import list_folder, no_images

    drawings = out.resolve()
    for path in images:
        if not path.is_dir():
            yield path
            continue
        folder = list_folder(FolderRoot(path))
        inside = (path / name for name in folder.images)
        files = [
            file
            for file in inside
            if not (_DRAWN.fullmatch(file.name) and file.parent.resolve() == drawings)
        ]
        if not files:
            raise UserError(no_images(path, folder.notes))
        for note in folder.notes:
            cli.say(f"NOTE: {path}: {note}")
        yield from files
