"""`sgpipe generate`: a recipe becomes shards of labelled images, resumably."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.generation.identity import drawn_settings, identity
from sgpipe.generation.ray_engine import UnitReader, UnitWriter, WorkUnit, idle_gpus, plan_pools, run_units, start_ray
from sgpipe.generation.utilization import BusyMeter
from sgpipe.miniworld.dataset import CAPTIONS, IMAGES, INSTANCES
from sgpipe.recipe import MINIWORLD, Recipe, SplitConfig, with_packaged_models
from sgpipe.sources import open_source
from sgpipe.sources.miniworld import draw, split_name
from sgpipe.stages.base import Stage
from sgpipe.stages.build import build_stages
from sgpipe.stages.detect.detectors import detector_classes
from sgpipe.stages.detect.stage import DetectStage
from sgpipe.storage.manifest import MANIFEST, Manifest, ShardEntry, Summary, add_up
from sgpipe.storage.mirror import Published
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.shards import revision_of
from sgpipe.storage.source_index import SourceIndex
from sgpipe.storage.storage import Store
from sgpipe.utils.console import Progress
from sgpipe.utils.hashing import differences, fingerprint

_UNITS_PER_ACTOR = 4


def generate(recipe: Recipe, out: Path, progress: Progress, *, retry_failed: bool = False) -> Summary:
    """Label the recipe's source into `out`, going on where an earlier run of the same recipe stopped.

    Raises:
        UserError: something is wrong with the recipe, its files or the folder; nothing was lost.
        EngineError: the work could not be finished; what is committed stays.
    """
    _check(recipe)
    if remark := _remark(recipe):
        progress.say(f"NOTE: {remark}")
    folder = RunFolder(out, Store(recipe.engine.store) if recipe.engine.store else None)
    with folder.lock():
        published = Published(folder)
        with published.reconciled():
            recipe = with_packaged_models(_draw(recipe, folder, progress))
            indexes = _open_sources(recipe, folder, progress)
            manifest = _open_manifest(recipe, folder, indexes)
        folder.sweep(manifest)
        folder.describe(recipe, manifest)
        published.copy()
        rows = _planned_rows(recipe, indexes)
        todo = _missing(manifest, rows) + _lost(folder, manifest, progress)
        if retry_failed:
            todo += _failed(manifest, rows, {unit.revises for unit in todo})
        if todo:
            for split in indexes:
                published.copy_index(folder.index(split))
            with published:
                _run(recipe, folder, manifest, indexes, todo, progress, published)
            folder.sweep(manifest)
        return summarise(manifest, sum(rows.values()), indexes)


def _check(recipe: Recipe) -> None:
    """Refuse what cannot work before anything is written."""
    splits = recipe.source.splits
    drawn = recipe.source.format == "miniworld"
    if splits and drawn:
        raise UserError("the miniworld draws its own images; for others name a recipe: sgpipe generate coco …")
    if not splits and not drawn:
        raise UserError("the recipe names no data: give --images and --annotations, or --root")
    unannotated = [name for name, split in splits.items() if split.annotations is None]
    if unannotated and recipe.source.format != "folder":
        raise UserError(
            f"no boxes for {', '.join(unannotated)}: give --annotations, or label a folder: generate folder"
        )
    if len(unannotated) < len(splits) and recipe.source.format == "folder":
        raise UserError("format folder is for images without annotations; leave --annotations out")
    if recipe.source.format == "folder" and recipe.detect.detector is None:
        raise UserError("no detector: give --detector FOLDER_OR_ID, an object detector of transformers")
    if recipe.tag.tagger is None:
        raise UserError("no tagger: give --tagger FOLDER (`sgpipe convert` makes one from an official checkpoint)")
    without = [name for name, split in splits.items() if split.captions is None]
    if without and recipe.caption.captioner is None and recipe.pair.candidates == "captions":
        raise UserError(f"no captions for {', '.join(without)}: give --captioner or --captions")


def _remark(recipe: Recipe) -> str | None:
    """What a person should know who labels these images by these models."""
    packaged = MINIWORLD in (recipe.caption.captioner, recipe.tag.tagger)
    if packaged and recipe.source.format != "miniworld":
        return "the models of the miniworld know nothing but drawn images: these labels mean nothing"
    if packaged and recipe.source.drawn.split == "train":
        return "the models of the miniworld learned from images of this split: the labels are too good"
    return None


def _draw(recipe: Recipe, folder: RunFolder, progress: Progress) -> Recipe:
    """The recipe with the images of the drawn world as its data; any other recipe as it is.

    Raises UserError: the folder holds labels of other images.
    """
    drawing, config = folder.drawing, recipe.source.drawn
    settings = drawn_settings(recipe)
    if (folder.root / MANIFEST).exists() and (manifest := Manifest.load(folder.root)).shards:
        before = {"drawn": manifest.run["identity"].get("drawn")}
        if changes := differences(before, {"drawn": settings}):
            raise _other_recipe(folder, changes)
    if drawing.settings != settings:
        shutil.rmtree(drawing.place, ignore_errors=True)
    if settings is None:
        return recipe
    if drawing.settings is None:
        progress.say(f"drawing {config.images:,} images")
        draw(config, drawing)
    world = drawing.world
    split = SplitConfig(annotations=world / INSTANCES, images=world / IMAGES, captions=world / CAPTIONS)
    source = recipe.source.model_copy(update={"root": None, "splits": {split_name(config.split): split}})
    return recipe.model_copy(update={"source": source})


def _open_sources(recipe: Recipe, folder: RunFolder, progress: Progress) -> dict[str, SourceIndex]:
    indexes = {}
    for split in recipe.source.splits:
        progress.say(f"reading the annotations of {split}")
        indexes[split] = open_source(recipe.source, split, folder.index(split))
    return indexes


def _open_manifest(recipe: Recipe, folder: RunFolder, indexes: dict[str, SourceIndex]) -> Manifest:
    """The folder's manifest, if it is of this very recipe; a new one in an empty folder."""
    now = identity(recipe, indexes)
    images = {split: _place(root, folder) for split, root in _image_roots(recipe).items()}
    run = {"name": recipe.name, "fingerprint": fingerprint(now), "identity": now, "images": images}
    if folder.store:
        run["store"] = folder.store.place
    if not (folder.root / MANIFEST).exists():
        if folder.holds_shards():
            raise UserError(f"{folder.place} holds shards but no {MANIFEST}; restore it, or choose another")
        return Manifest.create(folder.root, run)
    manifest = Manifest.load(folder.root)
    if manifest.run["fingerprint"] == run["fingerprint"] and manifest.run.get("store") == run.get("store"):
        return manifest
    if not manifest.shards:  # nothing was made by the other recipe
        return Manifest.create(folder.root, run)
    raise _other_recipe(folder, differences(manifest.run["identity"], now))


def _other_recipe(folder: RunFolder, changes: Sequence[str]) -> UserError:
    lines = "".join(f"\n  {line}" for line in changes)
    other = "--store" if folder.store else "--out"
    return UserError(f"{folder.place} was made by another recipe; choose another {other}, or go back on:{lines}")


def _place(images: Path, folder: RunFolder) -> str:
    """An image folder as the manifest names it: within the run relative to it, so that both can be moved."""
    root = folder.root.resolve()
    return str(images.relative_to(root) if images.is_relative_to(root) and not folder.store else images)


def _image_roots(recipe: Recipe) -> dict[str, Path]:
    source = recipe.source
    return {split: source.path(config.images).resolve() for split, config in source.splits.items()}


def _planned_rows(recipe: Recipe, indexes: dict[str, SourceIndex]) -> dict[str, int]:
    """How many rows of each split are wanted: all, or the first `limit` in the order of the splits."""
    left = recipe.limit if recipe.limit is not None else sum(len(index) for index in indexes.values())
    rows = {}
    for split, index in indexes.items():
        rows[split] = min(len(index), left)
        left -= rows[split]
    return rows


def _missing(manifest: Manifest, rows: dict[str, int]) -> list[WorkUnit]:
    """What no shard covers yet, as few and as long ranges as possible."""
    return [WorkUnit(split, *gap) for split, count in rows.items() for gap in manifest.missing(split, count)]


def _lost(folder: RunFolder, manifest: Manifest, progress: Progress) -> list[WorkUnit]:
    """Committed shards whose files are gone or cut, to be made again as they were."""
    lost = folder.lost(manifest)
    for shard in lost:
        progress.say(f"{shard.file} is missing or damaged: it is made again")
    return [_again(shard) for shard in lost]


def _failed(manifest: Manifest, rows: dict[str, int], taken: set[str | None]) -> list[WorkUnit]:
    """The error rows of every shard within the planned rows that has some and is not made again anyway."""
    return [
        _again(shard, redo=True)
        for shard in manifest.shards
        if shard.counts.get("errors") and shard.start < rows.get(shard.split, 0) and shard.file not in taken
    ]


def _again(shard: ShardEntry, redo: bool = False) -> WorkUnit:
    revision = revision_of(shard.file) + 1
    return WorkUnit(shard.split, shard.start, shard.stop, shard.file, redo, revision)


def _cut(todo: Sequence[WorkUnit], most: int, actors: int) -> list[WorkUnit]:
    """Cut ranges into units of at most `most` rows, and small enough that all actors have work to the end."""
    new = [unit for unit in todo if unit.revises is None]
    rows = sum(unit.stop - unit.start for unit in new)
    size = max(1, min(most, -(-rows // (_UNITS_PER_ACTOR * actors))))
    return [unit for unit in todo if unit.revises is not None] + [
        WorkUnit(unit.split, at, min(at + size, unit.stop)) for unit in new for at in range(unit.start, unit.stop, size)
    ]


def _run(
    recipe: Recipe,
    folder: RunFolder,
    manifest: Manifest,
    indexes: dict[str, SourceIndex],
    todo: Sequence[WorkUnit],
    progress: Progress,
    published: Published,
) -> None:
    stages = _stages(recipe, indexes)
    progress.say("starting Ray")
    start_ray(recipe.engine)
    most = max(pool.actors for pool in plan_pools(stages, sum(unit.stop - unit.start for unit in todo)))
    units = _cut(todo, recipe.engine.unit_size, most)
    pools = plan_pools(stages, len(units))
    if hint := idle_gpus(stages):
        progress.say(hint)
    for pool in pools:
        progress.say(f"{pool.actors} x {' + '.join(stage.name for stage in pool.stages)}")
    reader = UnitReader(folder.shelf, {split: folder.index_name(split) for split in indexes})
    writer = UnitWriter(folder.shelf)
    busy = BusyMeter(pools)
    with (
        progress.images(sum(unit.stop - unit.start for unit in units)) as advance,
        closing(run_units(stages, units, reader, writer)) as shards,
    ):
        described = {shard.split for shard in manifest.shards}
        for shard in shards:
            written = time.time() if folder.store else (folder.root / shard.file).stat().st_mtime
            busy.add(written, shard.seconds)
            superseded = manifest.commit(shard)
            published.copy_soon()
            # The copy of the manifest in a store may still list it: there it waits for `sweep`.
            if superseded is not None and superseded.file != shard.file and not folder.store:
                folder.shelf.delete(superseded.file)
            if shard.split not in described:
                described.add(shard.split)
                folder.describe(recipe, manifest)
            advance(shard.rows, shard.counts)
    progress.say(busy.text)


def _stages(recipe: Recipe, indexes: dict[str, SourceIndex]) -> list[Stage]:
    roots = _image_roots(recipe)
    if recipe.source.format == "folder":
        return [DetectStage(recipe.detect, roots), *build_stages(recipe, roots, detector_classes(recipe.detect))]
    # By the splits' names: their order in the recipe must not matter to the tagger, which reads all names together.
    return build_stages(
        recipe, roots, [name for split in sorted(indexes) for name in indexes[split].meta["categories"]]
    )


def summarise(manifest: Manifest, planned: int, indexes: dict[str, SourceIndex] | None = None) -> Summary:
    """Add up the counts of the committed shards and the problems of their sources."""
    problems: Counter[str] = Counter()
    for index in (indexes or {}).values():
        problems.update(index.meta["problems"])
    return add_up(manifest, planned, problems)
