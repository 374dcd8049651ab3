"""`sgpipe generate`: a recipe becomes shards of labelled images, resumably."""

import math
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sgpipe.errors import UserError
from sgpipe.files.hub import fetch_models
from sgpipe.generation.batch import Batch, BatchFiles
from sgpipe.generation.budget import ErrorBudget
from sgpipe.generation.engine import (
    Engine,
    LabelledUnit,
    StageBuilder,
    UnansweredUnit,
    UnitReader,
    UnitWriter,
    WorkUnit,
    runs_locally,
)
from sgpipe.generation.identity import source_identity
from sgpipe.generation.image_roots import (
    check_names,
    keep_indexes,
    keep_listings,
    open_image_roots,
)
from sgpipe.generation.local_engine import LocalEngine
from sgpipe.generation.metrics import LAST_DIGITS, RunMetrics
from sgpipe.generation.resolve import RunPlan, resolve
from sgpipe.generation.spending import RunSpending, asks_endpoint, check_prices
from sgpipe.recipe import Recipe, numbers_of_part
from sgpipe.sources.extended_run import open_parent
from sgpipe.sources.opening import open_source, prepare_source
from sgpipe.stages.build import build_stages
from sgpipe.stages.served.answers import CacheFolder, RequestCache
from sgpipe.stages.served.engines.local import LOGS, LocalReplicas
from sgpipe.storage.header import GpuUse, RunHeader
from sgpipe.storage.manifest import Manifest, ShardEntry, Summary, add_up
from sgpipe.storage.mirror import ManifestMirror
from sgpipe.storage.run_folder import README, RECIPE, REQUESTS, RunFolder, check_output
from sgpipe.storage.source_index import SourceIndex
from sgpipe.storage.tokens import Spending
from sgpipe.utils.console import Advance, Progress, count, listed
from sgpipe.utils.numerics import numerics_changes, package_versions
from sgpipe.utils.ray_cluster import prepare_ray, start_ray

if TYPE_CHECKING:
    from sgpipe.generation.ray_replicas import RayReplicas


def generate(
    recipe: Recipe,
    out: str | Path,
    progress: Progress | None = None,
    *,
    retry_failed: bool = False,
    parent: str | Path | None = None,
    metrics: Path | None = None,
    spending: Spending | None = None,
    batch_files: BatchFiles | None = None,
    relist: bool = False,
) -> Summary:
    """Label the recipe's source into the folder `out`; an earlier run of the same recipe there is
    resumed.

    Args:
        retry_failed: label the images of error rows again, as they are now: images in stores are
            listed again.
        parent: a run, or its object store; what it has up to the first stage with other settings is
            taken over.
        metrics: a file, to which a line of JSON is appended each minute and at the end.
        spending: what tokens of served models cost, and how much the run may cost.
        batch_files: what takes the place of served models; None: these are asked.
        relist: list images in stores again; by default a run knows those that it listed first.

    Raises:
        UserError: something is wrong with the recipe, its files or the folder, and nothing was
            lost.
        EngineError: the work could not be finished, and what is committed stays.
    """
    progress = progress or Progress()
    announce_own_code(recipe, progress)
    plan = resolve(recipe, Path(out), None if parent is None else str(parent))
    spending = spending or Spending()
    check_prices(spending, plan.stages)
    if batch_files is not None:
        plan = batch_files.local_plan(plan)
    if plan.reuse is not None:
        progress.say(str(plan.reuse))
    for note in plan.notes:
        progress.say(f"NOTE: {note}")
    folder = RunFolder(Path(out), plan.store)
    with ExitStack() as stack:
        stack.enter_context(folder.lock())
        batch = None if batch_files is None else stack.enter_context(batch_files.opened(progress))
        run = stack.enter_context(closing(LabellingRun(plan, folder, progress, spending, batch)))
        mirror = ManifestMirror(folder)
        with mirror.reconciled():
            run.open(relist=relist, retry_failed=retry_failed)
            units = run.missing_units(retry_failed)
            if units:
                units = run.start_engine(units)
            mirror.has_work = bool(units)
        if mirror.is_owner:
            run.take_place(has_work=bool(units), retry_failed=retry_failed)
            mirror.copy()
        meter = run.meter(units)
        with meter.written_to(metrics and check_output(metrics), progress):
            run.label(units, mirror, meter)
        return run.summary()


def announce_own_code(recipe: Recipe, progress: Progress) -> None:
    """Say what code of the user's own is about to be imported.

    Raises:
        UserError: no such name.
    """
    if recipe.own_code:
        progress.say(f"importing {listed(recipe.own_code)}, which is not a part of sgpipe")


class LabellingRun:
    """A run from its plan to its last shard.

    Attributes:
        plan: of the run; its images are in place once it is open.
        roots, indexes: the images and annotations of each split.
        rows: those of each split that are asked for.
        engine: a local one gets ready while annotations are read.
        spending: the tokens of the run, once it is open.
    """

    def __init__(
        self,
        plan: RunPlan,
        folder: RunFolder,
        progress: Progress,
        spending: Spending | None = None,
        batch: Batch | None = None,
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.progress = progress
        self.indexes: dict[str, SourceIndex] = {}
        self.rows: dict[str, range] = {}
        self.engine: Engine | None = None
        self._replicas: LocalReplicas | RayReplicas | None = None
        cache = CacheFolder(
            folder.private.absolute(),
            spending=spending or Spending(),
            store=folder.store if asks_endpoint(plan.stages) else None,
            batch=None if batch is None else batch.mode,
        )
        self._batch = batch
        self._stages = StageBuilder(build_stages, plan.stages, {}, {}, cache)

    def open(self, *, relist: bool = False, retry_failed: bool = False) -> None:
        """Put the source in place, read its annotations, and open the manifest.

        Args:
            relist: images in stores are those of now, not those of when the run began.
            retry_failed: these, too, may have been replaced.

        Raises:
            UserError: the folder contains another run.
        """
        plan = self.plan
        is_known = not plan.stages.with_engines  # where served models will be
        if is_known and not plan.before and runs_locally(plan.engine, plan.stages, math.inf):
            self.engine = LocalEngine(plan.stages, plan.engine)
            self.engine.warm_up(self._stages)
        source, ground_truth = prepare_source(plan.source, self.folder.private, self.progress.say)
        self.plan = plan.with_source(source)
        relists = relist or retry_failed
        now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
        self.roots = open_image_roots(source, self.folder, self.progress, relists=relists)
        for split, root in self.roots.items():
            self.progress.say(f"reading the annotations of {split}")
            index = open_source(source, split, self.folder.index(split), root)
            for note in index.meta.get("notes", ()):
                self.progress.say(f"NOTE: {note}")
            self.indexes[split] = index
        self.manifest = self.folder.open(self._header())
        self._check_part()
        self._tell_other_software()
        keep_listings(self.roots, self.folder, now)
        self.folder.set_ground_truth(ground_truth)
        cache = self._stages.cache_folder
        answers = cache.open().tokens()
        self.spending = RunSpending(cache.spending, self.manifest.shards, answers)
        cache = replace(cache, spending=self.spending.spending)
        self._stages = replace(self._stages, cache_folder=cache)

    def _check_part(self) -> None:
        """Raise UserError if the folder contains another part of the source."""
        before = self.manifest.run.get("part")
        now = self.plan.part
        if before != now:
            advice = f"pass --part {before}" if before else "omit --part"
            raise UserError(
                f"{self.folder.location} contains {_name_of(before)} of the images, not"
                f" {_name_of(now)}: {advice}, or choose another --out"
            )

    def _tell_other_software(self) -> None:
        """Say if the run began with other versions of the libraries that compute."""
        before = self.manifest.run.get("software", {})
        changes = numerics_changes(before, package_versions())
        if changes:
            self.progress.say(
                f"NOTE: the run continues with other software ({changes}): {LAST_DIGITS}"
            )

    def cache(self) -> RequestCache:
        """Return the answers of served models."""
        return self._stages.cache_folder.open()

    def forget_refusals(self) -> None:
        """Let served models be asked again about what they have refused."""
        self.cache().forget_refusals()

    def _header(self) -> RunHeader:
        """Return what the manifest says of the run."""
        plan = self.plan
        folder = self.folder
        lengths = {split: len(index) for split, index in self.indexes.items()}
        run: RunHeader = {
            "name": plan.name,
            "source_images": sum(lengths.values()),
            "source_splits": lengths,
            "software": package_versions(),
        }
        files = source_identity(self.indexes)
        if plan.reuse is None:
            run["identity"] = replace(plan.identity, source=files).as_json()
        else:
            run |= plan.reuse.header(files)
        run |= source_header(self.indexes)
        # what is in the folder moves with it
        inside = "" if folder.store else f"{folder.root.resolve()}/"
        run["images"] = {
            split: root.location.removeprefix(inside) for split, root in self.roots.items()
        }
        if plan.source.format == "run":
            extended = open_parent(plan.source.run).manifest.run
            run["origin"] = Manifest.identities(extended)
            run["labels"] = extended.get("labels")
        if folder.store:
            run["store"] = folder.store.uri
        if plan.part:
            run["part"] = plan.part
        return run

    def missing_units(self, retry_failed: bool) -> list[WorkUnit]:
        """Return what is left to do: rows without a shard, lost shards, and error rows that are
        retried.

        Raises:
            UserError: no image is there, or the parent lacks rows.
        """
        lost = self.manifest.lost(self.folder.storage)
        units = self._unlabelled()
        for shard in lost:
            self.progress.say(f"{shard.file} is missing or damaged; regenerating it")
            units.append(WorkUnit(shard.split, shard.start, shard.stop, shard.file))
        if retry_failed:
            units += self._failed(lost)
        reuse = self.plan.reuse
        if reuse and units:
            reuse.check_rows(self.rows)
        if not reuse and not self.manifest.shards:
            check_names(self.roots, self.indexes, self.rows)
        return units

    def _unlabelled(self) -> list[WorkUnit]:
        """Return the rows without a shard among those that are asked for, which are noted in
        `rows`.
        """
        lengths = {split: len(index) for split, index in self.indexes.items()}
        self.rows = asked_rows(lengths, self.plan.limit, self.plan.part)
        units = []
        for split, asked in self.rows.items():
            for start, stop in self.manifest.missing(split, asked):
                units.append(WorkUnit(split, start, stop))
        return units

    def _failed(self, lost: Sequence[ShardEntry]) -> Iterator[WorkUnit]:
        """Yield the shards with error rows, among the images that are asked for."""
        for shard in self.manifest.shards:
            is_asked_for = shard.start in self.rows.get(shard.split, ())
            if shard.counts.get("errors") and is_asked_for and shard not in lost:
                yield WorkUnit(shard.split, shard.start, shard.stop, shard.file, errors_only=True)

    def start_engine(self, units: Sequence[WorkUnit]) -> list[WorkUnit]:
        """Fetch missing models and start the engine; returns the units, cut for its workers. Raises
        as these do.
        """
        if self.plan.missing_models:
            fetch_models(self.plan.missing_models)
        rows = sum(unit.rows for unit in units)
        if runs_locally(self.plan.engine, self.plan.stages, rows):
            self._start_replicas()
            self.engine = self.engine or LocalEngine(self.plan.stages, self.plan.engine)
        else:
            self.engine = self._ray_engine()
        return self.engine.start(self._builder(), units, self.progress, self._images_asked_for)

    def _ray_engine(self) -> Engine:
        """Return the engine on Ray, after the servers of stages with engines have started."""
        address = self.plan.engine.address
        prepare_ray(address)
        from sgpipe.generation.ray_engine import RayEngine
        from sgpipe.generation.ray_replicas import RayReplicas

        stages = self.plan.stages
        if not address or not stages.with_engines:
            self._start_replicas()
            return RayEngine(self.plan.engine)
        start_ray(address, say=self.progress.say)
        replicas = RayReplicas(stages, self.folder.private / LOGS, self.progress.say)
        self._replicas = replicas
        self.plan = replace(self.plan, stages=stages.with_endpoints(replicas.start()))
        return RayEngine(self.plan.engine, replicas)

    def _start_replicas(self) -> None:
        """Start the servers of stages with engines on this machine, and note in the plan where they
        are.
        """
        stages = self.plan.stages
        if stages.with_engines and self._batch is None:
            logs = self.folder.private / LOGS
            self._replicas = LocalReplicas(stages.with_engines, logs, self.progress.say)
            stages = stages.with_endpoints(self._replicas.start())
            self.plan = replace(self.plan, stages=stages)

    def _builder(self) -> StageBuilder:
        """Return what builds the stages for the images and classes of the source."""
        plan = self.plan
        # in whatever order the recipe has the splits
        metas = [index.meta for _, index in sorted(self.indexes.items())]
        classes: dict[str, int] | None = None
        if not plan.stages.detects:
            classes = {}
            for meta in metas:
                classes.update(zip(meta["categories"], meta["category_ids"], strict=True))
        build = build_stages
        if plan.source.format == "run":
            known = [triplet for meta in metas for triplet in meta["known"]]
            build = partial(build_stages, known=known)
        return StageBuilder(build, plan.stages, self.roots, classes, self._stages.cache_folder)

    def reader(self) -> UnitReader:
        """Return what reads the units from the source indexes, and from the parent."""
        names = {split: self.folder.index_name(split) for split in self.indexes}
        reader = UnitReader(self.folder.storage, names, self.roots)
        return self.plan.reuse.reader(reader) if self.plan.reuse else reader

    def take_place(self, *, has_work: bool, retry_failed: bool) -> None:
        """Prepare the folder, which is this run's own from now on, and the store, if there is one.

        Args:
            has_work: see `describe`.
            retry_failed: served models are asked again about images that they have refused.
        """
        claim = self.folder.claim
        if claim is not None and claim.note:
            self.progress.say(f"NOTE: {claim.note}")
        if retry_failed:
            self.forget_refusals()
        self.describe(has_work=has_work)

    def describe(self, *, has_work: bool) -> None:
        """Clear up after a killed run, and write the recipe and README beside the data.

        A finished run stays as it is described, whatever smaller limit is asked for now.
        """
        folder = self.folder
        folder.sweep(self.manifest)
        is_described = all((folder.root / name).is_file() for name in (RECIPE, README))
        if has_work or not is_described:
            folder.describe(self.plan.recipe, self.manifest)

    def meter(self, units: Sequence[WorkUnit]) -> RunMetrics:
        """Return what measures the units as they are done."""
        workers = self.engine.workers if self.engine else {}
        on_ray = bool(units) and not isinstance(self.engine, LocalEngine)
        is_client = "://" in str(self.plan.engine.address)
        images = sum(unit.rows for unit in units)
        gpus: dict[str, GpuUse] = {}
        for shard in self.manifest.shards:
            gpus |= shard.gpus
        return RunMetrics(
            self.plan.name, images, workers, on_ray=on_ray and not is_client, gpus=gpus
        )

    def label(self, units: Sequence[WorkUnit], mirror: ManifestMirror, meter: RunMetrics) -> None:
        """Run the units, if any are left, and commit each shard as soon as it is written."""
        if self.engine is None or not units:
            self._say_nothing_is_left()
            return
        exchanged = self._batch.exchanged(self.cache()) if self._batch else nullcontext()
        with exchanged:
            self._label(self.engine, units, mirror, meter)

    def _label(
        self,
        engine: Engine,
        units: Sequence[WorkUnit],
        mirror: ManifestMirror,
        meter: RunMetrics,
    ) -> None:
        """Run the units, and commit each shard."""
        folder = self.folder
        for split in self.indexes:
            mirror.copy_index(folder.index(split))
        keep_indexes(self.roots, folder)
        described = {shard.split for shard in self.manifest.shards}
        writer = UnitWriter(folder.storage, folder.claim)
        budget = ErrorBudget(self.plan.engine.max_errors, folder.private)
        with (
            mirror.copied(),
            self.progress.images(meter.queue, remark=self.spending.note) as advance,
            closing(self._answered(engine.run(units, self.reader(), writer), advance)) as answered,
            closing(budget.shards(answered)) as shards,
        ):
            for shard in shards:
                shard = self.spending.with_unlisted(shard)
                written = self._time_of(shard)
                self.manifest.commit(shard)
                if shard.split not in described:
                    described.add(shard.split)
                    folder.describe(self.plan.recipe, self.manifest)
                mirror.copy_soon()
                advance(shard.rows, shard.counts)
                for note in meter.add(shard, written):
                    self.progress.say(note)
                if meter.queue > 0:
                    self.spending.check()
        if self._batch is None:
            for line in meter.summary():
                self.progress.say(line)
        failed = budget.note()
        if failed:
            self.progress.say(failed)
        self._say_unusable_answers()
        folder.sweep(self.manifest)

    def _answered(
        self, units: Generator[LabelledUnit | UnansweredUnit], advance: Advance
    ) -> Generator[LabelledUnit]:
        """Yield the units with shards; a batch counts the others."""
        with closing(units):
            for unit in units:
                if isinstance(unit, LabelledUnit):
                    yield unit
                elif self._batch is not None:
                    self._batch.images += unit.images
                    advance(unit.unit.rows, {})

    def _time_of(self, shard: ShardEntry) -> float:
        """Return when a shard was written, in seconds since the epoch."""
        if self.folder.store:
            return time.time()
        return (self.folder.root / shard.file).stat().st_mtime

    @property
    def _images_asked_for(self) -> int:
        return sum(map(len, self.rows.values()))

    def _say_nothing_is_left(self) -> None:
        asked = self._images_asked_for
        images = sum(shard.rows for shard in self.manifest.shards)
        part = f", of which {asked:,} were asked for" if asked < images else ""
        self.progress.say(
            f"nothing left to do: {self.folder.location} has {count(images, 'image')}{part}"
        )

    def _say_unusable_answers(self) -> None:
        number = RequestCache(self.folder.private / REQUESTS).count_by_rules()
        if number:
            self.progress.say(
                f"NOTE: {count(number, 'caption')} fell back to the rule parser: the model's"
                " answers were unusable"
            )

    def summary(self) -> Summary:
        """Return what the run contains now."""
        problems = Counter[str]()
        for index in self.indexes.values():
            problems.update(index.meta["problems"])
        return add_up(self.manifest, self._images_asked_for, problems)

    def close(self) -> None:
        """End the workers, and the servers that they ask."""
        if self.engine is not None:
            self.engine.close()
        if self._replicas is not None:
            self._replicas.close()


def asked_rows(lengths: Mapping[str, int], limit: int | None, part: str | None) -> dict[str, range]:
    """Return the rows of each split that a run labels.

    The parts of a split follow each other, and have the same number of images, or one more.

    Args:
        lengths: how many images each split has.
        limit: of how many images together, the first ones; None: all.
        part: which part of each split then, such as "3/100"; None: all.
    """
    number, parts = numbers_of_part(part or "1/1")
    left = sum(lengths.values()) if limit is None else limit
    rows: dict[str, range] = {}
    for split, length in lengths.items():
        labelled = min(length, left)
        left -= labelled
        rows[split] = range(labelled * (number - 1) // parts, labelled * number // parts)
    return rows


def _name_of(part: str | None) -> str:
    return f"part {part}" if part else "all parts"


def source_header(indexes: Mapping[str, SourceIndex]) -> RunHeader:
    """Return what the header of a run says of what its source has, and of what was lost when it was
    read.
    """
    counts = Counter[str]()
    problems = Counter[str]()
    for index in indexes.values():
        problems.update(index.meta["problems"])
        counts["images"] += index.meta["images"]
        counts["boxes"] += index.meta["boxes"]
        counts["captions"] += index.meta["texts"]
    return {"source_counts": dict(counts), "source_problems": dict(problems)}
