"""`sgpipe import …`: one command for each kind of annotations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgpipe.cli.help import HelpfulGroup
from sgpipe.sources.formats import guess_split
from sgpipe.utils import console

if TYPE_CHECKING:
    from sgpipe.sources.annotated import AnnotationSource


EXIT_ALL_FAILED = 3

Annotations = Annotated[Path, typer.Option(help="Annotation file.")]
Images = Annotated[Path, typer.Option(help="Folder of the images; they may be missing unless their size is needed.")]
Out = Annotated[Path, typer.Option(help="Folder for the shards; an unfinished import in it goes on.")]
Split = Annotated[str | None, typer.Option(help="Name of the split; guessed from --annotations.")]
Limit = Annotated[int | None, typer.Option(help="Only the first N images.")]
Embed = Annotated[bool, typer.Option("--embed", help="Keep the image files in the shards.")]
Json = Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Do shards with error rows again.")]

app = typer.Typer(cls=HelpfulGroup, no_args_is_help=True, help="Turn human annotations into shards.")


@app.command()
def vg(
    annotations: Annotations,
    images: Images,
    out: Out,
    image_data: Annotated[Path | None, typer.Option(help="image_data.json, for the sizes of the images.")] = None,
    object_aliases: Annotated[
        Path | None, typer.Option(help="Object names that mean the same, a group a line.")
    ] = None,
    predicate_aliases: Annotated[
        Path | None, typer.Option(help="Predicates that mean the same, a group a line.")
    ] = None,
    preprocess: Annotated[bool, typer.Option(help="Lower case, each fact once, 100 an image, as RLIPv2 does.")] = True,
    split: Split = None,
    limit: Limit = None,
    embed: Embed = False,
    retry_failed: RetryFailed = False,
    json_: Json = False,
) -> None:
    """Visual Genome and scene graphs in its form.

    Reads scene_graphs.json or relationships.json.
    """
    from sgpipe.sources.visual_genome import VisualGenome

    split = split or guess_split(annotations)
    genome = VisualGenome(annotations, images, split, image_data, object_aliases, predicate_aliases, preprocess)
    _run(genome.source(), images, out, limit, embed, retry_failed, json_)


@app.command()
def hico(
    annotations: Annotations,
    images: Images,
    out: Out,
    split: Split = None,
    limit: Limit = None,
    embed: Embed = False,
    retry_failed: RetryFailed = False,
    json_: Json = False,
) -> None:
    """HICO-DET.

    Reads trainval_hico.json (HOIA form) or instances_train2015.json.
    """
    from sgpipe.sources.hoi import hico_source

    source = hico_source(annotations, split or guess_split(annotations))
    _run(source, images, out, limit, embed, retry_failed, json_)


@app.command()
def vcoco(
    annotations: Annotations,
    images: Images,
    out: Out,
    split: Split = None,
    limit: Limit = None,
    embed: Embed = False,
    retry_failed: RetryFailed = False,
    json_: Json = False,
) -> None:
    """V-COCO.

    Reads trainval_vcoco.json (HOIA form) or instances_vcoco_train.json.
    """
    from sgpipe.sources.hoi import vcoco_source

    source = vcoco_source(annotations, split or guess_split(annotations))
    _run(source, images, out, limit, embed, retry_failed, json_)


@app.command()
def openimages(
    annotations: Annotations,
    images: Images,
    out: Out,
    categories: Annotated[
        Path | None, typer.Option(help="OI_SGG_trainval_test_categories_dict.json: the classes used; else all 601.")
    ] = None,
    split: Split = None,
    limit: Limit = None,
    embed: Embed = False,
    retry_failed: RetryFailed = False,
    json_: Json = False,
) -> None:
    """Open Images V6 relations.

    Reads OI_SGG_train_finetuning.json or vrd-train-anno.json.
    """
    from sgpipe.sources.open_images import OpenImages

    source = OpenImages(annotations, split or guess_split(annotations), categories).source()
    _run(source, images, out, limit, embed, retry_failed, json_)


@app.command()
def rlipv2(
    annotations: Annotations,
    images: Images,
    out: Out,
    image_paths: Annotated[
        Path | None, typer.Option(help="Objects365's image_id_to_filepath.json, which its images need.")
    ] = None,
    split: Split = None,
    limit: Limit = None,
    embed: Embed = False,
    retry_failed: RetryFailed = False,
    json_: Json = False,
) -> None:
    """RLIPv2's pseudo-labels of COCO or Objects365.

    Reads them, and scene graphs in their form, exactly as they are.
    """
    from sgpipe.sources.scene_graphs import PseudoLabels

    source = PseudoLabels(annotations, images, split or guess_split(annotations), image_paths).source()
    _run(source, images, out, limit, embed, retry_failed, json_)


@app.command(name="coco-rel")
def coco_rel(
    annotations: Annotations,
    relations: Annotated[Path, typer.Option(help="rel.json: triplets by split and image, and rel_categories.")],
    images: Images,
    out: Out,
    split: Split = None,
    limit: Limit = None,
    embed: Embed = False,
    retry_failed: RetryFailed = False,
    json_: Json = False,
) -> None:
    """COCO instances with relation triplets in RelTR's form."""
    from sgpipe.sources.coco_relations import CocoRelations

    source = CocoRelations(annotations, relations, split or guess_split(annotations)).source()
    _run(source, images, out, limit, embed, retry_failed, json_)


@app.command()
def coco(
    annotations: Annotations,
    images: Images,
    out: Out,
    captions: Annotated[Path | None, typer.Option(help="COCO captions file of the same images.")] = None,
    split: Split = None,
    limit: Limit = None,
    embed: Embed = False,
    retry_failed: RetryFailed = False,
    json_: Json = False,
) -> None:
    """COCO's objects and captions, as `sgpipe export --to coco` writes them; there are no relations in them."""
    from sgpipe.sources.coco_relations import coco_source

    source = coco_source(annotations, split or guess_split(annotations), captions)
    _run(source, images, out, limit, embed, retry_failed, json_)


@app.command()
def hf(
    folder: Annotated[Path, typer.Argument(help="Folder with data/SPLIT-00000-of-00001.parquet …")],
    out: Out,
    images: Annotated[Path | None, typer.Option(help="Folder of the images, where they are not in the rows.")] = None,
    split: Annotated[str | None, typer.Option(help="Which split, if there are several.")] = None,
    limit: Limit = None,
    embed: Embed = False,
    json_: Json = False,
) -> None:
    """A dataset that `sgpipe export --to hf` wrote, with all its columns."""
    from sgpipe.sources.hugging_face import HuggingFace

    _run(HuggingFace(folder, split).source(), images or folder, out, limit, embed, False, json_)


def _run(
    source: AnnotationSource, images: Path, out: Path, limit: int | None, embed: bool, retry_failed: bool, json_: bool
) -> None:
    import json

    from sgpipe.generation.summary import print_import
    from sgpipe.sources.import_run import import_annotations
    from sgpipe.stats.measures import distinct_predicates
    from sgpipe.utils.console import Progress

    progress = Progress(console.progress())
    summary = import_annotations(source, images, out, progress, embed=embed, limit=limit, retry_failed=retry_failed)
    if json_:
        print(json.dumps(summary.as_json(), indent=2))
    else:
        print_import(summary, len(distinct_predicates(out)), console.output())
    if summary.counts["images"] and summary.counts["images"] == summary.counts["errors"]:
        raise typer.Exit(EXIT_ALL_FAILED)
