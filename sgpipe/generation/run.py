"""`sgpipe generate`: a recipe becomes shards of labelled images, resumably."""

import math
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from sgpipe.calibration import choose_threshold
from sgpipe.errors import UserError, existing_model
from sgpipe.files.hub import fetch_models, missing_models
from sgpipe.files.image_roots import (
    ImageRoot,
    IndexFolder,
    absolute,
    check_images,
    existing_images,
    has_images,
    lacks_images,
)
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location, StorePath, content_id
from sgpipe.generation.engine import (
    Engine,
    LocalEngine,
    StageBuilder,
    UnitReader,
    UnitWriter,
    WorkUnit,
    runs_locally,
    share_gpus,
    stages_sharing_gpus,
)
from sgpipe.generation.identity import Reuse, identity, source_identity
from sgpipe.generation.metrics import RunMetrics
from sgpipe.recipe import (
    STAGES,
    Recipe,
    SourceConfig,
    hub_models,
    models_of,
    recipe_notes,
    resolved,
    with_model_folders,
)
from sgpipe.sources.hub import check_hub
from sgpipe.sources.opening import check_run, open_parent, open_source, prepare_source
from sgpipe.stages.build import build_stages
from sgpipe.stages.endpoint import CacheFolder, RequestCache
from sgpipe.stages.pair import check_pair
from sgpipe.stages.tag.methods import check_tagger
from sgpipe.storage.losses import SOURCE_COUNTS, SOURCE_PROBLEMS
from sgpipe.storage.manifest import MANIFEST, Manifest, Summary, add_up
from sgpipe.storage.run_folder import (
    README,
    RECIPE,
    REQUESTS,
    ManifestMirror,
    RunFolder,
    check_output,
)
from sgpipe.storage.source_index import SOURCE_TOTALS, SourceIndex
from sgpipe.utils.atomic import atomic_write
from sgpipe.utils.console import Progress, count, single_line
from sgpipe.utils.devices import ANY_NUMBER, check_devices, usable_gpus
from sgpipe.utils.ray_cluster import prepare_ray

# images of a split
_MOST_LOOKED_FOR = 100_000
_AT_ONCE = 1000
_NAMES_PEEKED = 20  # of annotations that are not read yet


def generate(
    recipe: Recipe,
    out: str | Path,
    progress: Progress | None = None,
    *,
    retry_failed: bool = False,
    parent: str | Path | None = None,
    metrics: Path | None = None,
) -> Summary:
    """Label the recipe's source into the folder `out`; an earlier run of the same recipe there is
    resumed.

    Args:
        retry_failed: label the images of error rows again.
        parent: a run, or its object store; what it has up to the first stage with other settings is
            taken over.
        metrics: a file, to which a line of JSON is appended each minute and at the end.

    Raises UserError: something is wrong with the recipe, its files or the folder, and nothing was
    lost; EngineError: the work could not be finished, and what is committed stays.
    """
    progress = progress or Progress()
    out = Path(out)
    recipe = resolved(recipe)
    reuse = None if parent is None else Reuse.plan(str(parent), recipe, out)
    if reuse is not None:
        recipe = reuse.recipe
        progress.say(str(reuse))
    check_recipe(recipe, reuse.stages if reuse else STAGES)
    for note in recipe_notes(recipe, detects=recipe.detects, source=recipe.source):
        progress.say(f"NOTE: {note}")
    folder = RunFolder(out, StorePath(recipe.engine.store) if recipe.engine.store else None)
    with folder.lock(), closing(LabellingRun(recipe, folder, reuse, progress)) as run:
        mirror = ManifestMirror(folder)
        with mirror.reconciled():
            run.plan()
            units = run.missing_units(retry_failed)
            if units:
                units = run.start_engine(units)
            mirror.has_work = bool(units)
        if mirror.is_owner:
            if retry_failed:  # served models are asked again about images that they have refused
                RequestCache(folder.private / REQUESTS).forget_refusals()
            folder.sweep(run.manifest)
            described = all((folder.root / name).is_file() for name in (RECIPE, README))
            if units or not described:  # a finished run is not described by a smaller --limit
                folder.describe(run.recipe, run.manifest)
            mirror.copy()
        on_ray = (
            bool(units)
            and not isinstance(run.engine, LocalEngine)
            and "://" not in str(recipe.engine.address)
        )
        workers = run.engine.workers if run.engine else {}
        meter = RunMetrics(recipe.name, sum(unit.rows for unit in units), workers, on_ray=on_ray)
        with meter.written_to(metrics and check_output(metrics), progress):
            run.label(units, mirror, meter)
        problems = sum(
            (Counter(index.meta["problems"]) for index in run.indexes.values()), Counter[str]()
        )
        return add_up(run.manifest, sum(run.rows.values()), problems)


class LabellingRun:
    """A run from its plan to its last shard.

    `recipe` has its images and models in place once it is planned. `before`: the identity of shards
    in the folder, if there are any. `roots`, `indexes`: the images and annotations of each split;
    `rows`: how many are asked for. A local `engine` gets ready while the run is planned.
    """

    def __init__(
        self, recipe: Recipe, folder: RunFolder, reuse: Reuse | None, progress: Progress
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.reuse = reuse
        self.progress = progress
        self.before: Mapping[str, Any] = {}
        self.indexes: dict[str, SourceIndex] = {}
        self.rows: dict[str, int] = {}
        self.engine: Engine | None = None

    def plan(self) -> None:
        """Put the source in place, and open the manifest. Raises UserError: the folder contains
        another run.
        """
        folder = self.folder
        reuse = self.reuse
        progress = self.progress
        if (folder.root / MANIFEST).exists() and (there := Manifest.load(folder.root)).shards:
            self.before = there.run["identity"]
        skipped = {*(reuse.reused if reuse else ()), *self.recipe.absent}
        cache = CacheFolder(folder.private.absolute())
        self._stages = StageBuilder(build_stages, self._with_gpus(), {}, {}, skipped, cache)
        if not self.before and runs_locally(self._stages.recipe, self._stages, math.inf):
            self.engine = LocalEngine(self._stages)
            self.engine.warm_up(self._stages)
        made = {"miniworld": self.before.get("miniworld")}
        now = {"miniworld": self.recipe.source.synthetic}
        if (
            self.before and made != now
        ):  # labels of other images that the source made, which are not touched
            raise folder.changed(made, now)
        source, ground_truth = prepare_source(self.recipe.source, folder.private, progress.say)
        self.recipe = with_model_folders(
            self.recipe.model_copy(update={"source": source}), self.before
        )
        if reuse is None and not self.before:
            check_image_folders(source)
        self.roots = open_image_roots(source, folder, progress)
        for split, root in self.roots.items():
            progress.say(f"reading the annotations of {split}")
            self.indexes[split] = index = open_source(source, split, folder.index(split), root)
            for note in index.meta.get("notes", ()):
                progress.say(f"NOTE: {note}")
        run: dict[str, Any] = {
            "name": self.recipe.name,
            "source_images": sum(map(len, self.indexes.values())),
        }
        if reuse is None:
            run["identity"] = identity(
                self.recipe, self.indexes, stages_sharing_gpus(self.recipe, self.before)
            )
        else:
            run |= reuse.header(source_identity(self.indexes))
        run |= source_header(self.indexes)
        own = (
            "" if folder.store else f"{folder.root.resolve()}/"
        )  # what is in the folder moves with it
        run["images"] = {
            split: root.location.removeprefix(own) for split, root in self.roots.items()
        }
        if source.format == "run":
            extended = open_parent(source.run).manifest.run
            run |= {"origin": Manifest.identities(extended), "labels": extended.get("labels")}
        if folder.store:
            run["store"] = folder.store.uri
        self.manifest = folder.open(run)
        folder.set_ground_truth(ground_truth)

    def missing_units(self, retry_failed: bool) -> list[WorkUnit]:
        """Return what is left to do: rows without a shard, lost shards, and error rows that are
        retried.

        Raises UserError: no image is there, or the parent lacks rows.
        """
        left = (
            self.recipe.limit
            if self.recipe.limit is not None
            else sum(map(len, self.indexes.values()))
        )
        units = []
        for split, index in self.indexes.items():
            self.rows[split] = min(len(index), left)
            left -= self.rows[split]
            units += [
                WorkUnit(split, *gap) for gap in self.manifest.missing(split, self.rows[split])
            ]
        again = self.manifest.lost(self.folder.storage)
        for shard in again:
            self.progress.say(f"{shard.file} is missing or damaged; regenerating it")
        units += [WorkUnit(each.split, each.start, each.stop, each.file) for each in again]
        for shard in self.manifest.shards if retry_failed else ():
            if (
                shard.counts.get("errors")
                and shard not in again
                and shard.start < self.rows.get(shard.split, 0)
            ):
                units.append(
                    WorkUnit(shard.split, shard.start, shard.stop, shard.file, errors_only=True)
                )
        if units and self.reuse:
            self.reuse.check_rows(self.rows)
        if not self.reuse and not self.manifest.shards:
            check_names(self.roots, self.indexes, self.rows)
        return units

    def start_engine(self, units: Sequence[WorkUnit]) -> list[WorkUnit]:
        """Fetch missing models and start the engine; returns the units, cut for its workers. Raises
        as these do.
        """
        recipe = self._with_gpus()
        metas = [
            index.meta for _, index in sorted(self.indexes.items())
        ]  # in whatever order the recipe has the splits
        ids = (zip(meta["categories"], meta["category_ids"], strict=True) for meta in metas)
        classes = None if recipe.detects else dict(chain.from_iterable(ids))
        stages = replace(self._stages, recipe=recipe, roots=self.roots, classes=classes)
        if recipe.source.format == "run":
            known = [triplet for meta in metas for triplet in meta["known"]]
            stages = replace(stages, build=partial(build_stages, known=known))
        if not recipe.engine.address and (
            missing := missing_models(hub_models(recipe, stages.skipped))
        ):
            fetch_models(missing)
        if runs_locally(recipe, stages, sum(unit.rows for unit in units)):
            self.engine = self.engine or LocalEngine(stages)
        else:
            prepare_ray(recipe.engine.address)
            from sgpipe.generation.ray_engine import RayEngine

            self.engine = RayEngine()
        return self.engine.start(stages, units, self.progress, sum(self.rows.values()))

    def reader(self) -> UnitReader:
        """Return what reads the units from the source indexes, and from the parent."""
        names = {split: self.folder.index_name(split) for split in self.indexes}
        reader = UnitReader(self.folder.storage, names)
        return self.reuse.reader(reader) if self.reuse else reader

    def label(self, units: Sequence[WorkUnit], mirror: ManifestMirror, meter: RunMetrics) -> None:
        """Run the units, if any are left, and commit each shard as soon as it is written."""
        folder = self.folder
        manifest = self.manifest
        if self.engine is None or not units:
            asked = sum(self.rows.values())
            there = sum(shard.rows for shard in manifest.shards)
            of_them = f", of which {asked:,} were asked for" if asked < there else ""
            self.progress.say(
                f"nothing left to do: {folder.location} has {count(there, 'image')}{of_them}"
            )
            return
        for split in self.indexes:
            mirror.copy_index(folder.index(split))
        keep_indexes(self.roots, folder)
        described = {shard.split for shard in manifest.shards}
        with (
            mirror.copied(),
            self.progress.images(meter.queue) as advance,
            closing(
                self.engine.run(units, self.reader(), UnitWriter(folder.storage, folder.claim))
            ) as shards,
        ):
            for shard in shards:
                written = (
                    time.time() if folder.store else (folder.root / shard.file).stat().st_mtime
                )
                manifest.commit(shard)
                if shard.split not in described:
                    described.add(shard.split)
                    folder.describe(self.recipe, manifest)
                mirror.copy_soon()
                advance(shard.rows, shard.counts)
                for note in meter.add(shard, written):
                    self.progress.say(note)
        for line in meter.summary():
            self.progress.say(line)
        by_rules = RequestCache(folder.private / REQUESTS).count_by_rules()
        if by_rules:
            fallen = count(by_rules, "caption")
            self.progress.say(
                f"NOTE: {fallen} fell back to the rule parser: the model's answers were unusable"
            )
        folder.sweep(manifest)

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()

    def _with_gpus(self) -> Recipe:
        shared = stages_sharing_gpus(self.recipe, self.reuse.before if self.reuse else self.before)
        return share_gpus(self.recipe, shared & set(self.reuse.stages if self.reuse else STAGES))


def check_image_folders(source: SourceConfig) -> None:
    """Look into folders for annotated images before annotations are read, which takes minutes.

    Raises:
        UserError: a folder has no images, or none of the first ones that the annotations name.
    """
    for name, split in source.splits.items():
        if split.annotations is None:
            continue
        place = source.images(name)
        if not has_images(place):
            raise UserError(
                f"{place} contains no images and no archives of them: check the image folder of"
                f" {name}"
            )
        image_names = first_image_names(source.path(split.annotations))
        if image_names and lacks_images(place, image_names):
            raise _no_image_of(place, name, image_names[0])


def first_image_names(annotations: Location) -> list[str]:
    """Return the first file names of a COCO file on this machine; none if it lists other things
    before.
    """
    names: list[str] = []
    if not isinstance(annotations, Path):
        return names
    with suppress(UserError):  # whoever reads the whole file says what is wrong with it
        for key, item in JsonStream(annotations):
            if key == "images" and isinstance(item, dict):
                names.append(str(item.get("file_name", "")))
            if key == "annotations" or len(names) == _NAMES_PEEKED:
                break
    return names


def _no_image_of(place: object, split: str, file_name: str) -> UserError:
    """Return the error of an image folder that is another dataset's."""
    return UserError(
        f"{place} has no image of the split {split}, such as {single_line(file_name)}; check this"
        " location, and the names in the annotations"
    )


def source_header(indexes: Mapping[str, SourceIndex]) -> dict[str, dict[str, int]]:
    """Return what the header of a run says of what its source has, and of what was lost when it was
    read.
    """
    counts = Counter[str]()
    problems = Counter[str]()
    for index in indexes.values():
        problems.update(index.meta["problems"])
        counts.update({name: index.meta.get(key, 0) for name, key in SOURCE_TOTALS.items()})
    return {SOURCE_COUNTS: dict(counts), SOURCE_PROBLEMS: dict(problems)}


def check_recipe(recipe: Recipe, stages: Sequence[str] = STAGES) -> None:
    """Check all that a recipe names, before a folder is made; models of stages not in `stages` need
    not be there.

    Raises UserError: data or a model is missing, or options contradict each other; the message
    names the option.
    """
    source = recipe.source
    pair = recipe.pair
    if source.format == "hub":
        check_hub(recipe)
    elif source.format == "run":
        check_run(recipe)
    elif source.splits and source.synthetic is not None:
        raise UserError(
            "the miniworld generates its own images; to label others, use another recipe, such as"
            " coco"
        )
    elif not source.splits and source.synthetic is None:
        raise UserError(
            "the recipe names no data: set source.splits (--images, --annotations) or source.root"
            " (--root)"
        )
    else:
        annotated = [split.annotations is not None for split in source.splits.values()]
        if not all(annotated) and source.format != "folder":
            raise UserError("no boxes: pass --annotations, or use the recipe folder")
        if any(annotated) and source.format == "folder":
            raise UserError(
                "the recipe is for images without annotations (source.format: folder); omit"
                " --annotations"
            )
    if recipe.engine.kind == "local" and recipe.engine.address:
        raise UserError(
            "engine.kind=local does not join a Ray cluster: omit engine.address (--ray-address)"
        )
    for name in stages:
        stage = recipe.stages[name]
        if not stage.takes_device:
            continue
        shared = (
            usable_gpus() if recipe.engine.address is None and stage.resources.gpus is None else 0
        )
        names = (f"{name}.device", f"{name}.resources.gpus")
        check_devices(stage.device, stage.resources.gpus or min(shared, 1), ANY_NUMBER, names)
    if (
        source.format == "folder"
        and recipe.detect.detector is None
        and recipe.ground.detector is None
    ):
        raise UserError("detect.detector is not set (--detector)")
    check_tagger(recipe.tag, pair)
    if "pair" in stages:
        check_pair(pair)
    named = {} if source.format in ("hub", "run") else source.splits  # these are found later
    if recipe.needs_captions and any(split.captions is None for split in named.values()):
        raise UserError("no captions: set caption.captioner (--captioner) or pass --captions")
    files = [source.path(path) for path in (source.image_data,) if path is not None]
    for name, split in source.splits.items():
        check_images(source.images(name))
        files += [
            source.path(path) for path in (split.annotations, split.captions) if path is not None
        ]
    if "pair" in stages or "ground" in stages:
        files += [
            path for path in (pair.synonyms, pair.prior, pair.equivalents) if path is not None
        ]
    for path in files:
        content_id(path)
    choose_threshold(recipe.tag.calibration, recipe.tag.threshold, recipe.tag.precision)
    truth = source.ground_truth and source.path(source.ground_truth)
    if isinstance(truth, Path):
        shards = Manifest.load(truth).shards
        if not any(shard.counts.get("relations") for shard in shards):
            raise UserError(f"{truth} contains no relations to compare with")
    for model in models_of(recipe, set(STAGES) - {*stages}).values():
        existing_model(model)


def open_image_roots(
    source: SourceConfig, folder: RunFolder, progress: Progress
) -> dict[str, ImageRoot]:
    """Return the root of each split as it is now, on the hub as when the run began. Raises as
    `existing_images`.
    """
    indexes = IndexFolder(folder.store or folder.root, progress, whole=True)
    before = (
        Manifest.load(folder.root).run.get("images", {})
        if (folder.root / MANIFEST).exists()
        else {}
    )
    roots = {}
    for split in source.splits:
        location = absolute(source.images(split))
        if location.startswith("hf://") and before.get(split, "").startswith(f"{location}@"):
            location = before[split]
        roots[split] = existing_images(location, indexes)
    return roots


def check_names(
    roots: Mapping[str, ImageRoot], indexes: Mapping[str, SourceIndex], rows: Mapping[str, int]
) -> None:
    """Look for an image of each split of a new run. Raises UserError: none is there, so all rows
    would be errors.
    """
    for split, number in rows.items():
        root = roots[split]
        step = -(-number // _MOST_LOOKED_FOR)
        starts = range(0, number, _AT_ONCE)
        parts = (indexes[split].records(start, min(start + _AT_ONCE, number)) for start in starts)
        names = (record.file_name for part in parts for record in part[::step])
        first = next(names, None)
        if first is not None and not root.contains(first) and not any(map(root.contains, names)):
            raise _no_image_of(root.location, split, first)


def keep_indexes(roots: Mapping[str, ImageRoot], folder: RunFolder) -> None:
    """Copy the indexes of the roots into the run and its store, and delete those of earlier states
    of its images.
    """
    indexes = [root.index for root in roots.values() if root.index]
    for index in indexes:
        kept = folder.private / index.name
        if not kept.exists():
            with atomic_write(kept) as temporary:
                shutil.copyfile(index.path, temporary)
        if folder.store and not (folder.store / f".sgpipe/{index.name}").head():
            (folder.store / f".sgpipe/{index.name}").put(kept)
    for path in folder.private.glob("images-*.arrow"):
        if path.name not in [index.name for index in indexes]:
            path.unlink()
