"""What is wrong with a recipe, before a folder is made or a model is loaded.

Each check raises UserError, whose message names the setting.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from sgpipe.calibration import choose_threshold
from sgpipe.errors import UserError, existing_model
from sgpipe.files.image_roots import check_images
from sgpipe.files.inventory import inventory_files
from sgpipe.files.locations import content_id
from sgpipe.plugins import load_class
from sgpipe.recipe import (
    STAGES,
    EngineConfig,
    PairConfig,
    Recipe,
    SourceConfig,
    StageConfig,
    TagConfig,
    check_options,
    models_of,
)
from sgpipe.registry import Kind
from sgpipe.sources.extended_run import check_run
from sgpipe.sources.hub import check_hub
from sgpipe.stages.base import Stage
from sgpipe.stages.caption.captioner import Captioner
from sgpipe.stages.pair import check_pair
from sgpipe.stages.served.engines.commands import model_servers
from sgpipe.stages.tag.methods import check_tagger
from sgpipe.stages.tag.tagger import Tagger
from sgpipe.storage.manifest import Manifest
from sgpipe.utils.devices import ANY_NUMBER, check_devices, usable_gpus

# Of what a section names that may be code of the user's own.
_BASES: Mapping[Kind, type[Captioner | Tagger | Stage]] = {
    "captioner": Captioner,
    "tagger": Tagger,
    "stage": Stage,
}


def check_recipe(recipe: Recipe, stages: Collection[str] = STAGES) -> None:
    """Check all that a recipe names.

    Args:
        stages: that run; models and files of others need not be there.

    Raises:
        UserError: data or a model is missing, or options contradict each other.
    """
    check_data(recipe)
    check_engine(recipe.engine)
    for stage in stages:
        check_device(stage, recipe.stages[stage], recipe.engine)
    check_detector(recipe)
    check_tagger(recipe.tag, recipe.pair)
    if "pair" in stages:
        check_pair(recipe.pair)
    check_captions(recipe)
    check_source_files(recipe.source)
    if "pair" in stages or "ground" in stages:
        check_pair_files(recipe.pair)
    check_threshold(recipe.tag)
    check_ground_truth(recipe.source)
    check_models(recipe, stages)
    check_servers(recipe, stages)
    check_code(recipe, stages)


def check_data(recipe: Recipe) -> None:
    """The recipe names a dataset, in the form that it expects."""
    source = recipe.source
    if source.format == "hub":
        check_hub(recipe)
    elif source.format == "run":
        check_run(recipe)
    elif source.synthetic is None:
        check_splits(source)
    elif source.splits:
        raise UserError(
            "the miniworld generates its own images; to label others, use another recipe, such as"
            " coco"
        )


def check_splits(source: SourceConfig) -> None:
    """There are splits, which have annotations if boxes are to come from them."""
    if not source.splits:
        raise UserError(
            "the recipe names no data: set source.splits (--images, --annotations) or source.root"
            " (--root)"
        )
    annotated = [split.annotations is not None for split in source.splits.values()]
    if source.format != "folder" and not all(annotated):
        raise UserError("no boxes: pass --annotations, or use the recipe folder")
    if source.format == "folder" and any(annotated):
        raise UserError(
            "the recipe is for images without annotations (source.format: folder); omit"
            " --annotations"
        )


def check_engine(engine: EngineConfig) -> None:
    """Only Ray joins a cluster."""
    if engine.kind == "local" and engine.address:
        raise UserError(
            "engine.kind=local does not join a Ray cluster: omit engine.address (--ray-address)"
        )


def check_device(stage: str, section: StageConfig, engine: EngineConfig) -> None:
    """The device of a stage is on this machine, and fits the GPUs that the stage asks for."""
    if not section.takes_device:
        return
    shares_gpus = engine.address is None and section.resources.gpus is None
    gpus = section.resources.gpus or (min(usable_gpus(), 1) if shares_gpus else 0)
    check_devices(section.device, gpus, ANY_NUMBER, (f"{stage}.device", f"{stage}.resources.gpus"))


def check_detector(recipe: Recipe) -> None:
    """Something finds boxes in images that have none."""
    detectors = (recipe.detect.detector, recipe.ground.detector)
    if recipe.source.format == "folder" and detectors == (None, None):
        raise UserError("detect.detector is not set (--detector)")


def check_pair_files(pair: PairConfig) -> None:
    """The tables that matching reads are there."""
    for path in (pair.synonyms, pair.prior, pair.equivalents):
        if path is not None:
            content_id(path)


def check_threshold(tag: TagConfig) -> None:
    """A threshold is given in one way, and a calibration can be read."""
    choose_threshold(tag.calibration, tag.threshold, tag.precision)


def check_models(recipe: Recipe, stages: Collection[str]) -> None:
    """Models that are folders are there."""
    idle_stages = {*STAGES} - {*stages}
    for model in models_of(recipe, idle_stages).values():
        existing_model(model)


def check_servers(recipe: Recipe, stages: Collection[str]) -> None:
    """Engines serve models that are asked."""
    sections = {name: recipe.stages[name] for name in stages if recipe.stages[name].has_engine}
    model_servers(sections)
    if sections and str(recipe.engine.address).startswith("ray://"):
        raise UserError(
            f"{next(iter(sections))}.engine needs a driver within the cluster, which"
            f" {recipe.engine.address} is not: run this on one of its machines with"
            " --ray-address auto"
        )
    if recipe.parse.has_engine and recipe.parse.parser != "llm":
        raise UserError(f"parse.parser is {recipe.parse.parser}: parse.engine is for llm")


def check_code(recipe: Recipe, stages: Collection[str]) -> None:
    """What is named as a captioner, tagger or stage of the user's own is one."""
    for name, section in recipe.stages.items():
        if section.then and name in recipe.absent:
            raise UserError(f"{name}.then: the stage {name} does not run for this recipe; omit it")
        if name not in stages:
            continue
        for kind, reference in section.own_code:
            load_class(kind, reference, _BASES[kind])
        check_options(section)


def check_captions(recipe: Recipe) -> None:
    """Captions are given where they are needed and no model writes them."""
    source = recipe.source
    if source.format in ("hub", "run") or not recipe.needs_captions:
        return  # their splits are found later
    if any(split.captions is None for split in source.splits.values()):
        raise UserError("no captions: set caption.captioner (--captioner) or pass --captions")


def check_source_files(source: SourceConfig) -> None:
    """The files and image folders of all splits are there."""
    files = [source.image_data]
    for name, split in source.splits.items():
        check_images(source.images(name))
        files += [split.annotations, split.captions]
    for path in files:
        if path is not None:
            content_id(source.path(path))
    for split in source.splits.values():
        if split.inventory is not None:
            inventory_files(source.path(split.inventory))


def check_ground_truth(source: SourceConfig) -> None:
    """The ground truth has relations; one in a store is read at the end."""
    if source.ground_truth is None:
        return
    place = source.path(source.ground_truth)
    if not isinstance(place, Path):
        return
    shards = Manifest.load(place).shards
    if not any(shard.counts.get("relations") for shard in shards):
        raise UserError(f"{place} contains no relations to compare with")
