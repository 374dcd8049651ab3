"""`sgpipe generate`, and two commands that do parts of its work: `sgpipe miniworld` and `sgpipe parse`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgpipe.cli.options import Captioner, Detector, ImageData, Json, Limit, RayAddress, Seed, Settings, Tagger
from sgpipe.errors import UserError
from sgpipe.utils import console

if TYPE_CHECKING:
    from sgpipe.storage.manifest import Summary


def generate(
    recipe: Annotated[
        str, typer.Argument(help="Packaged recipe (miniworld, coco, objects365, folder) or YAML file.")
    ] = "miniworld",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the shards; a run in it is resumed. Default: NAME-relations.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Object store for the shards, such as s3://bucket/labels; the rest is in --out.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder that the recipe's paths are relative to.")] = None,
    images: Annotated[Path | None, typer.Option(help="Image folder, instead of the recipe's splits.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Annotation file for --images.")] = None,
    captions: Annotated[Path | None, typer.Option(help="COCO captions file; the captioner does not run.")] = None,
    split: Annotated[str | None, typer.Option(help="Name of the split. Default: guessed from --annotations.")] = None,
    truth: Annotated[
        Path | None,
        typer.Option(help="Run or import with ground truth of the same images; prints precision and recall."),
    ] = None,
    image_data: ImageData = None,
    detector: Detector = None,
    captioner: Captioner = None,
    tagger: Tagger = None,
    limit: Limit = None,
    seed: Seed = None,
    retry_failed: Annotated[bool, typer.Option(help="Label the images of error rows again.")] = False,
    ray_address: RayAddress = None,
    assign: Settings = None,
    json_: Json = False,
) -> None:
    """Label the images of a dataset or a folder with relations.

    Without arguments, generates 200 synthetic images and labels them with the tiny models that ship with sgpipe;
    --set source.drawn.seed=1 gives other images.
    """
    from sgpipe.generation.run import generate as run
    from sgpipe.recipe import load_recipe
    from sgpipe.records import TRAINING_CONFIDENCE
    from sgpipe.utils.config_file import parse_set

    options = {
        "source.root": root,
        "source.ground_truth": truth and truth.absolute(),
        "source.image_data": image_data and image_data.absolute(),
        "detect.detector": detector,
        "caption.captioner": captioner,
        "tag.tagger": tagger,
        "limit": limit,
        "seed": seed,
        "engine.address": ray_address,
        "engine.store": store,
    }
    overrides = _source_overrides(images, annotations, captions, split)
    overrides |= {key: value for key, value in options.items() if value is not None}
    loaded = load_recipe(recipe, overrides | parse_set(assign or []))
    progress = console.Progress(console.progress())
    summary = run(loaded, out or Path(f"{loaded.name}-relations"), progress, retry_failed=retry_failed)
    _report(summary, max(TRAINING_CONFIDENCE, loaded.tag.threshold), json_, loaded.engine.store)
    if summary.counts["images"] and summary.counts["images"] == summary.counts["errors"]:
        raise typer.Exit(console.EXIT_ALL_FAILED)


def _source_overrides(
    images: Path | None, annotations: Path | None, captions: Path | None, split: str | None
) -> dict[str, Any]:
    from sgpipe.sources.formats import guess_split

    if images is None:
        if annotations is not None or captions is not None or split is not None:
            raise UserError("--annotations, --captions and --split need --images")
        return {}
    config = {"annotations": annotations, "images": images, "captions": captions}
    name = split or (guess_split(annotations) if annotations else "all")
    overrides: dict[str, Any] = {"source.splits": {name: config}}
    if captions is not None:
        overrides["caption.captioner"] = None
    return overrides


def _report(summary: Summary, threshold: float, json_: bool, store: str | None) -> None:
    """Print what the run contains and, if its images have ground truth and its shards are local, how good it is."""
    from sgpipe.evaluation.label_quality.report import print_run_quality, run_quality
    from sgpipe.generation.summary import print_summary

    quality = run_quality(summary.root, threshold) if store is None else {}
    if json_:
        measured = {name: asdict(each.at_threshold) for name, each in quality.items()}
        print(json.dumps(summary.as_json() | ({"quality": measured} if measured else {}), indent=2))
        return
    screen = console.output()
    print_summary(summary, screen)
    if quality:
        print_run_quality(quality, screen)


def miniworld(
    out: Annotated[
        Path, typer.Option(help="Folder for the images and for annotations in COCO, Visual Genome and HICO-DET format.")
    ],
    images: Annotated[int, typer.Option(help="Number of images.")] = 200,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    split: Annotated[str, typer.Option(help="train, val or test-compositional.")] = "val",
) -> None:
    """Generate a synthetic dataset with exact ground truth."""
    from sgpipe.sources.miniworld import render_dataset

    render_dataset(out, images, seed, split)
    console.output().print(f"generated {console.count(images, 'image')} in {out}", soft_wrap=True)


def parse(
    model: Annotated[str | None, typer.Option(help="spaCy model. Default: the best one installed.")] = None,
) -> None:
    """Turn captions into triplets.

    Reads one caption per line from standard input and prints one line of JSON for each.
    """
    from sgpipe.recipe import ParseConfig
    from sgpipe.stages.parse.stage import CaptionParser, parse_lines

    parser = CaptionParser(ParseConfig(model=model))
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    for result in parse_lines(sys.stdin, parser):
        print(json.dumps(result, ensure_ascii=False))
