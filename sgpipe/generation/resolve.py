"""From a recipe, which a user wrote, to the plan of a run: everything that is settled before its
folder and its engine exist.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from sgpipe.files.hub import find_models, missing_models
from sgpipe.files.locations import Location
from sgpipe.files.stores import StorePath
from sgpipe.generation.checks import check_recipe
from sgpipe.generation.engine import share_gpus, stages_sharing_gpus
from sgpipe.generation.identity import Reuse, RunIdentity, identity
from sgpipe.generation.image_roots import check_image_folders
from sgpipe.recipe import (
    STAGES,
    EngineConfig,
    Recipe,
    SourceConfig,
    StagePlan,
    hub_models,
    recipe_notes,
    resolved,
    with_model_folders,
)
from sgpipe.storage.header import Identity
from sgpipe.storage.manifest import Manifest, read_manifest
from sgpipe.storage.run_folder import RunFolder, settings_changed


@dataclass(frozen=True)
class RunPlan:
    """What a run will do.

    Attributes:
        name: of the run.
        limit: how many images are labelled; None: all.
        part: which part of these, such as "3/100"; None: all.
        source: the dataset; its images are put in place within the run's folder.
        stages: that run, with models pinned and the GPUs of this machine shared.
        engine: how the work is distributed.
        identity: what decides the labels, but for the files of the source.
        before: the identity of the shards that are there already; {}: there are none.
        reuse: what is taken over from a parent; None: nothing.
        missing_models: of the hub, which this machine has to fetch.
        notes: what the user should know of the models.
        recipe: to be saved beside the data.
    """

    name: str
    limit: int | None
    part: str | None
    source: SourceConfig
    stages: StagePlan
    engine: EngineConfig
    identity: RunIdentity
    before: Identity
    reuse: Reuse | None
    missing_models: tuple[str, ...]
    notes: tuple[str, ...]
    recipe: Recipe

    @property
    def store(self) -> StorePath | None:
        """Where the shards are, if not in the folder."""
        return StorePath(self.engine.store) if self.engine.store else None

    def with_source(self, source: SourceConfig) -> RunPlan:
        """Return the plan with the images of the source in place."""
        recipe = self.recipe.model_copy(update={"source": source})
        return replace(self, source=source, recipe=recipe)


def resolve(recipe: Recipe, out: Path, parent: str | None = None) -> RunPlan:
    """Settle what a run will do, without writing anything.

    Args:
        out: the folder of the run, which may have shards of it.
        parent: a run that it takes stages over from.

    Raises:
        UserError: something is wrong with the recipe, its files or the parent; a model of the hub
            is missing; or the folder has labels of other images.
        EngineError: a store cannot be reached.
    """
    recipe = resolved(recipe)
    reuse = None
    if parent is not None:
        recipe, reuse = Reuse.plan(parent, recipe, out)
    runnable = reuse.stages if reuse else STAGES
    check_recipe(recipe, runnable)
    notes = recipe_notes(recipe, detects=recipe.detects, source=recipe.source)
    store = StorePath(recipe.engine.store) if recipe.engine.store else None
    RunFolder(out, store).check_root()
    before = identity_of_shards(out, store)
    refuse_other_images(store or out, before, recipe.source)
    is_new = not before
    if is_new and reuse is None:
        check_image_folders(recipe.source)
    recipe = with_model_folders(recipe, before)
    stages = StagePlan.of_recipe(recipe, reuse.reused if reuse else ())
    missing = models_to_fetch(recipe, stages.skipped)
    if missing and is_new:  # a finished run needs no models
        find_models(missing)
    earlier = reuse.before.stages if reuse else before
    sharing = stages_sharing_gpus(recipe.stages, recipe.engine, earlier)
    return RunPlan(
        name=recipe.name,
        limit=recipe.limit,
        part=recipe.part,
        source=recipe.source,
        stages=share_gpus(stages, sharing & {*runnable}, recipe.engine),
        engine=recipe.engine,
        identity=reuse.identity if reuse else identity(recipe, sharing),
        before=before,
        reuse=reuse,
        missing_models=tuple(missing),
        notes=tuple(notes),
        recipe=recipe,
    )


def identity_of_shards(out: Path, store: StorePath | None) -> Identity:
    """Return the identity of the shards that a folder or its store has; {}: there are none."""
    places: list[Location] = [out] if store is None else [out, store]
    for place in places:
        if read_manifest(place) is None:
            continue
        manifest = Manifest.load(place)
        if manifest.shards:
            return manifest.identity
    return {}


def refuse_other_images(place: Location, before: Identity, source: SourceConfig) -> None:
    """Raise UserError if the source would make other images than those that have labels, which it
    must not touch.
    """
    drawn = {"miniworld": before.get("miniworld")}
    wanted = {"miniworld": source.synthetic}
    if before and drawn != wanted:
        raise settings_changed(place, drawn, wanted)


def models_to_fetch(recipe: Recipe, skipped: Collection[str]) -> list[str]:
    """Return the models of the hub that are not on this machine; workers of a cluster fetch
    theirs.
    """
    if recipe.engine.address:
        return []
    return missing_models(hub_models(recipe, skipped))
