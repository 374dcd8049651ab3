"""`sgpipe import …`: one command for each form of annotations.

A function declares the options of the source of its name, which `sgpipe.registry` has: help must not
import what reads the annotations.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.cli.open_group import OpenGroup
from sgpipe.cli.repeated import CommandOfSingleValues
from sgpipe.plugins import failures_told, load_instance
from sgpipe.registry import BUILT_IN
from sgpipe.utils import BoxForm, console

if TYPE_CHECKING:
    from sgpipe.sources.annotated import AnnotationSource
else:
    AnnotationSource = Any  # imported when it is needed


class _Sources(OpenGroup):
    """A command for each form of annotations, and for every source of the user's own."""

    kind = "source"

    @staticmethod
    def function_of(
        reference: str, options: Sequence[inspect.Parameter] = ()
    ) -> Callable[..., None]:
        def read(data: AnnotationOptions, **values: object) -> AnnotationSource:
            from sgpipe.sources.plugin import plugin_source

            split = data.split_name(unsplit=True)
            return plugin_source(reference, data.annotations, split, data.images, values)

        read.__doc__ = f"Import what {reference} reads, which is not a part of sgpipe."
        return _importing(declare.with_options(read, options))

    @staticmethod
    def options_of(reference: str) -> Sequence[inspect.Parameter]:
        from sgpipe.sources.plugin import Source

        with failures_told("source", reference):
            return load_instance("source", reference, Source).options


app = typer.Typer(
    cls=_Sources,
    no_args_is_help=True,
    help="""Import human annotations as shards.

Of another form, by a Source of your own: package.module:NAME in place of a command.

Examples:

  sgpipe import vg --annotations scene_graphs.json --images VG --out vg/
""",
)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    out: Annotated[
        Path, declare.writes_folder("Folder for the shards; an unfinished import in it is resumed.")
    ]
    boxes: Annotated[
        BoxForm | None, declare.option("Form of boxes (n: parts of the image).", panel=declare.DATA)
    ] = None
    limit: cli.Limit = None
    embed: Annotated[bool, declare.option("Store the image files in the shards.", "--embed")] = (
        False
    )
    json_: cli.Json = False
    retry_failed: Annotated[
        bool, declare.option("Redo the shards with error rows.", "--retry-failed")
    ] = False


@dataclass(frozen=True, kw_only=True)
class AnnotationOptions(OutputOptions):
    annotations: Annotated[
        declare.Place, declare.reads_stored("Annotation file, also in a store: s3://….")
    ]
    images: Annotated[
        str, declare.reads_images("Folder, .zip or .tar, a folder of these, or s3://….")
    ]
    split: cli.GuessedSplit = None

    def split_name(self, *, unsplit: bool = False, own_splits: bool = False) -> str:
        """Return the split that is given, or that the file or folder is named after.

        Args:
            unsplit: the dataset is published without splits.
            own_splits: they are not those of its image folders.

        Raises:
            UserError: none, or two.
        """
        from sgpipe.recipe import WHOLE
        from sgpipe.sources.annotated import infer_split

        images = None if own_splits else self.images
        return self.split or infer_split(self.annotations, images, WHOLE if unsplit else None)


@dataclass(frozen=True, kw_only=True)
class HubOptions(OutputOptions):
    annotations: Annotated[
        str,
        declare.option(
            "Folder, store, or hub id.", panel=declare.DATA, callback=declare.maybe_path
        ),
    ]
    images: Annotated[
        str | None, declare.reads_images("Where the images are, if the rows do not contain them.")
    ] = None
    split: Annotated[str | None, declare.option("Split to import, if there are several.")] = None


def vg(
    data: AnnotationOptions,
    image_data: Annotated[
        declare.Place | None, declare.reads_stored("image_data.json, for the sizes of the images.")
    ] = None,
    object_aliases: Annotated[
        Path | None, declare.reads_file("Object names of one meaning, a group per line.")
    ] = None,
    predicate_aliases: Annotated[
        Path | None, declare.reads_file("Predicates of one meaning, a group per line.")
    ] = None,
    preprocess: Annotated[
        bool, declare.option("As RLIPv2: lower case, no duplicates, at most 100 relations.")
    ] = True,
) -> None:
    """Import Visual Genome, or scene graphs in its format.

    Reads scene_graphs.json or relationships.json.

    Examples:
      sgpipe import vg --annotations scene_graphs.json --image-data image_data.json --images VG
      --out vg/
    """


def hico(data: AnnotationOptions, classes: cli.Classes = None) -> None:
    """Import HICO-DET.

    Reads trainval_hico.json (HOIA format) or instances_train2015.json.

    Examples:
      sgpipe import hico --annotations trainval_hico.json --images train2015 --out hico/
    """


def vcoco(data: AnnotationOptions, classes: cli.Classes = None) -> None:
    """Import V-COCO.

    Reads trainval_vcoco.json (HOIA format) or instances_vcoco_train.json.

    Examples:
      sgpipe import vcoco --annotations trainval_vcoco.json --images train2014 --out vcoco/
    """


def openimages(
    data: AnnotationOptions,
    categories: Annotated[
        Path | None, declare.reads_file("OI_SGG_…_categories_dict.json. Default: 601 classes.")
    ] = None,
) -> None:
    """Import the relations of Open Images V6.

    Reads OI_SGG_train_finetuning.json or vrd-train-anno.json.

    Examples:
      sgpipe import openimages --annotations OI_SGG_train_finetuning.json --images oi --out oi/
    """


def rlipv2(
    data: AnnotationOptions,
    image_paths: Annotated[
        declare.Place | None, declare.reads_stored("Objects365's image_id_to_filepath.json.")
    ] = None,
) -> None:
    """Import RLIPv2's pseudo-labels of COCO or Objects365.

    Reads these files, and other scene graphs in their format, without changing them.

    Examples:
      sgpipe import rlipv2 --annotations RLIPv2_train2017.json --images coco --out rlipv2-coco/
    """


def coco_rel(
    data: AnnotationOptions,
    relations: Annotated[
        declare.Place | None, declare.reads_stored("RelTR's rel.json. Default: in --annotations.")
    ] = None,
) -> None:
    """Import COCO instances with relations.

    Reads RelTR's triplets, or the rel_annotations of SGG-Benchmark.

    Examples:
      sgpipe import coco-rel --annotations train.json --relations rel.json --images vg --out vg150/
      sgpipe import coco-rel --annotations train/_annotations.coco.json --images train --out psg/
    """


def coco(
    data: AnnotationOptions,
    captions: Annotated[
        declare.Place | None, declare.reads_stored("COCO captions file of the same images.")
    ] = None,
) -> None:
    """Import COCO's objects and captions.

    The result has no relations. Also reads what `sgpipe export --to coco` writes.

    Examples:
      sgpipe import coco --annotations instances_val.json --captions captions_val.json --images coco
      --out imported/
    """


def psg(
    data: AnnotationOptions,
    masks: Annotated[
        str | None, declare.reads_images("Panoptic PNGs of the file, for segmentations.")
    ] = None,
) -> None:
    """Import panoptic scene graphs (PSG).

    Reads OpenPSG's psg.json. --split is train, test or, by default, all; of an
    export also val, or what its splits are called.

    Examples:
      sgpipe import psg --annotations psg.json --images coco --masks coco --split test --out psg/
    """


def svg(data: AnnotationOptions) -> None:
    """Import the scene graphs of SVG (Synthetic Visual Genome).

    Examples:
      sgpipe import svg --annotations sg.json --images images --split train --out svg/
    """


def gbc(data: AnnotationOptions) -> None:
    """Import GBC, graphs of captions and their boxes, as JSON or JSON lines.

    The result has no relations; `sgpipe generate` takes them from the captions.

    Examples:
      sgpipe import gbc --annotations wiki_gbc_graphs.jsonl --images ml-gbc --out gbc/
    """


def vg150(
    data: AnnotationOptions,
    dicts: Annotated[
        Path, declare.reads_file("VG-SGG-dicts.json or VG-SGG-dicts-with-attri.json: the names.")
    ],
    image_data: Annotated[
        Path, declare.reads_file("image_data.json: ids and sizes of the images.")
    ],
) -> None:
    """Import VG150, the split of Visual Genome that benchmarks use.

    Reads VG-SGG.h5 or VG-SGG-with-attri.h5. --split is train, val, test or, by
    default, all.

    Examples:
      sgpipe import vg150 --annotations VG-SGG-with-attri.h5 --dicts VG-SGG-dicts-with-attri.json \
        --image-data image_data.json --images VG_100K --split test --out vg150/
    """


def label_studio(
    data: AnnotationOptions,
    predictions: Annotated[
        bool, declare.option("Also tasks with only a prediction.", "--predictions")
    ] = False,
    annotator: Annotated[
        str | None, declare.option("Only annotations of this person: e-mail or id.")
    ] = None,
    image_field: Annotated[
        str, declare.option("Key of a task's data with the address of its image.")
    ] = "image",
) -> None:
    """Import a project of Label Studio.

    Reads its JSON export: rectangles with labels, and relations between them.
    --split is by default what the tasks name, or all.

    Examples:
      sgpipe import label-studio --annotations project.json --images photos --out corrected/
    """


def hf(
    data: HubOptions,
    subset: Annotated[
        str | None, declare.option("Subset (configuration) of the dataset, if there are several.")
    ] = None,
    map_: Annotated[
        list[str] | None,
        declare.option("KEY=COLUMN: objects.bbox=boxes.xywh. Repeatable.", "--map"),
    ] = None,
    classes: cli.Classes = None,
) -> tuple[AnnotationSource, str]:
    """Import a dataset in the hub's form: Parquet files.

    Reads what `sgpipe export --to hf` wrote, with all columns, and other datasets of
    objects and relations, such as SGG-Benchmark's. Keys of --map: image, image_id,
    file_name, width, height, objects.bbox, .category, .id, .iscrowd, .segmentation,
    and relations.subject, .object, .predicate, .confidence.

    Examples:
      sgpipe import hf --annotations for-the-hub/ --split val --out imported/
      sgpipe import hf --annotations maelic/PSG-coco-format --split val --out psg/
    """
    from sgpipe.sources.hub import dataset_source

    has_own_images = data.images is None
    source, root = dataset_source(
        data.annotations, data.split, map_ or (), classes, subset, own_images=has_own_images
    )
    return source, data.images or root


def _reading(function: Callable[..., None]) -> Callable[..., AnnotationSource]:
    """Return a function of the options that another one declares, which returns what the source of
    its name reads.
    """

    @functools.wraps(function)
    def read(data: AnnotationOptions, **options: object) -> AnnotationSource:
        from sgpipe.sources.plugin import Source

        source = load_instance("source", BUILT_IN["source"][_name_of(function)], Source)
        split = data.split
        if not source.states_split:
            split = data.split_name(unsplit=source.is_unsplit, own_splits=source.has_own_splits)
        return source.opened(data.annotations, split, data.images, options)

    return read


def _name_of(function: Callable[..., object]) -> str:
    return function.__name__.replace("_", "-")


def _importing(
    function: Callable[..., AnnotationSource | tuple[AnnotationSource, str]],
) -> Callable[..., None]:
    """Return a command that imports what a function returns: a source, alone or with the place of
    its images.
    """

    @functools.wraps(function)
    def run(data: AnnotationOptions | HubOptions, **options: Any) -> None:
        from sgpipe.files.image_roots import has_images
        from sgpipe.generation.metrics import print_summary
        from sgpipe.sources.import_run import import_annotations

        # said before the annotations are read, which may take long
        if data.images and not has_images(data.images):
            later = "other commands find them with --images"
            cli.say(f"NOTE: {data.images} contains no images; if they are elsewhere, {later}")
        result = function(data, **options)
        source, images = result if isinstance(result, tuple) else (result, data.images or "")
        summary = import_annotations(
            source,
            images,
            data.out,
            console.Progress(),
            embed=data.embed,
            limit=data.limit,
            retry_failed=data.retry_failed,
            boxes=data.boxes,
        )
        if not cli.printed_json(data.json_, summary.as_json()):
            print_summary(summary, console.output(), imported=True)
        cli.say_losses(summary.losses)
        if summary.counts["images"] and summary.counts["images"] == summary.counts["errors"]:
            raise typer.Exit(console.EXIT_ALL_FAILED)

    return declare.command(run)


for _function in (
    vg,
    hico,
    vcoco,
    openimages,
    psg,
    rlipv2,
    svg,
    vg150,
    gbc,
    coco_rel,
    coco,
    label_studio,
):
    _register = app.command(name=_name_of(_function), cls=CommandOfSingleValues)
    _register(_importing(_reading(_function)))
app.command(cls=CommandOfSingleValues)(_importing(hf))
