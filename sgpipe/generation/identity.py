"""The identity of a run, everything that decides its labels, and `--from`: what a run takes over
from its parent.

The identity has the content of models and annotation files. A changed one is another run. Settings
that only distribute work (actors, batch sizes, devices) do not count. A parent's rows are taken
over up to the first stage that differs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError
from sgpipe.files.stores import StorePath
from sgpipe.generation.engine import UnitReader, WorkUnit, stages_sharing_gpus
from sgpipe.recipe import (
    STAGES,
    IdentityFacts,
    ParseConfig,
    Recipe,
    SourceConfig,
    SplitConfig,
    StageConfig,
    StageIdentity,
    load_recipe,
    own_identity,
    with_model_folders,
)
from sgpipe.records import Record, from_table
from sgpipe.sources.extended_run import open_parent
from sgpipe.stages.caption.captioner import settings_of
from sgpipe.stages.parse.stage import parser_identity
from sgpipe.storage.header import RunHeader
from sgpipe.storage.run_folder import RECIPE, RunFiles, ground_truth_of, kind_of
from sgpipe.storage.shards import damaged, read_checked
from sgpipe.storage.source_index import SourceIndex
from sgpipe.utils import __version__
from sgpipe.utils.atomic import temporary_folder
from sgpipe.utils.console import count, listed
from sgpipe.utils.hashing import differences

_EVERY_ROW = (
    "image_id",
    "dataset",
    "split",
    "file_name",
    "width",
    "height",
    "status",
    "error",
    "left_out",
)
# Settings of which an identity has what they are here: content of files, code, a number format.
_COMPUTED = (
    "detector",
    "captioner",
    "model",
    "tagger",
    "synonyms",
    "prior",
    "calibration",
    "dtype",
    "seed",
    "then",
)


@dataclass(frozen=True)
class RunIdentity:
    """What decides the rows of a run of `sgpipe generate`.

    Attributes:
        stages: by the name of each stage that runs, its settings with the content of its models
            and files.
        source: by split, the content of its annotation and caption files, or the run that is
            extended; {}: not read yet.
        miniworld: the settings by which images are drawn; None: they are not.
        parent: the fingerprint of the run that some columns come from.
    """

    seed: int
    format: str
    stages: Mapping[str, StageIdentity]
    miniworld: Mapping[str, object] | None
    open_images: bool = True
    source: Mapping[str, object] = field(default_factory=dict)
    parent: str | None = None
    sgpipe: str = __version__

    @classmethod
    def of_header(cls, values: Mapping[str, Any]) -> RunIdentity:
        """Return the identity that the manifest of a run states."""
        return cls(
            seed=values["seed"],
            format=values["format"],
            stages={name: values[name] for name in STAGES if name in values},
            miniworld=values.get("miniworld"),
            open_images=values.get("open_images", True),
            source=values["source"],
            parent=values.get("parent"),
            sgpipe=values["sgpipe"],
        )

    def as_json(self) -> dict[str, object]:
        """Return plain values for the manifest, whose fingerprint tells runs apart."""
        values: dict[str, object] = {
            "sgpipe": self.sgpipe,
            "seed": self.seed,
            "format": self.format,
            "source": self.source,
            "miniworld": self.miniworld,
        }
        if not self.open_images:
            values["open_images"] = False
        values |= self.stages
        if self.parent is not None:
            values["parent"] = self.parent
        return values


def identity(recipe: Recipe, sharing: Collection[str] = ()) -> RunIdentity:
    """Return what decides the labels but the files of the source.

    Args:
        sharing: stages that share this machine's GPUs unasked.
    """
    sections = recipe.stages
    sections["caption"] = settings_of(recipe.caption)
    facts = IdentityFacts(recipe.seed, recipe.source.format == "run")
    parts: dict[str, StageIdentity] = {}
    if recipe.detects:
        parts["detect"] = recipe.detect.identity(facts)
    for name in ("caption", "parse", "pair", "tag"):
        of_stage = replace(facts, shares_gpu=name in sharing)
        parts[name] = sections[name].identity(of_stage)
    parts["parse"] = {**parts["parse"], "model": parser_identity(recipe.parse)}
    if recipe.ground.detector is not None:
        parts["ground"] = recipe.ground.identity(facts) | recipe.pair.matching(facts)
    for name, part in parts.items():
        part.pop("options", None)  # in the identities of the code that has them
        section = sections[name]
        codes = [own_identity(section, "stage", reference) for reference in section.own_stages]
        if codes:
            parts[name] = {**part, "then": codes}
    return RunIdentity(
        seed=recipe.seed,
        format=recipe.source.format,
        stages=parts,
        miniworld=recipe.source.synthetic,
        open_images=recipe.source.open_images,
    )


def source_identity(indexes: Mapping[str, SourceIndex]) -> dict[str, dict[str, object]]:
    """Return the content of the annotation and caption files of each split, or the run that is
    extended.
    """
    content: dict[str, dict[str, object]] = {}
    for split, index in indexes.items():
        content[split] = {
            "annotations": index.meta.get("annotations_sha256"),
            "captions": index.meta.get("captions_sha256"),
        }
        if "run" in index.meta:
            content[split]["run"] = index.meta["run"]
    return content


def parent_recipe(run: str, overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a run with overrides, stored elsewhere.

    Raises:
        UserError: see `_open`.
    """
    recipe = _open(run, {"engine.store": None, "engine.address": None, **overrides})[1]
    for stage, config in recipe.stages.items():
        role = config.setting_of_model
        model = config.named_model
        if config.plugin is not None and overrides.get(f"{stage}.{role}") != model:
            raise UserError(
                f"{run}: its {role} {model} is code, which is not imported because a run names it;"
                f" if you trust it, pass --{role} {model}"
            )
        if config.then and tuple(overrides.get(f"{stage}.then", ())) != config.then:
            options = " ".join(f"--then {stage}={name}" for name in config.then)
            raise UserError(
                f"{run}: its {stage}.then is code, which is not imported because a run names it;"
                f" if you trust it, pass {options}"
            )
    return recipe


def extended_recipe(run: str, overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe that extends a run: its own, with its captions if it has any; of an import
    the miniworld's.
    """
    manifest = open_parent(run).manifest
    if any(shard.counts.get("captions") for shard in manifest.shards):
        overrides = {"caption.captioner": None, **overrides}
    if "tag" not in manifest.identity:
        return load_recipe("miniworld", overrides)
    return parent_recipe(run, {"limit": None, "part": None, **overrides})


def _open(run: str, overrides: Mapping[str, Any] | None = None) -> tuple[RunFiles, Recipe]:
    """Return a run and its recipe.

    Raises:
        UserError: as `open_parent`; or `sgpipe generate` did not make its rows.
    """
    files = open_parent(run)
    identity = files.manifest.identity
    kind = kind_of(identity)
    if kind != "a run" or "tag" not in identity:
        raise UserError(f"--from {run}: expected a run of `sgpipe generate`, this is {kind}")
    if files.folder:
        return files, load_recipe(files.folder / RECIPE, overrides)
    content = (StorePath(files.root) / RECIPE).read()
    if content is None:
        raise UserError(f"{run} is not a run of `sgpipe generate`: it has no {RECIPE}")
    with temporary_folder() as folder:
        (folder / RECIPE).write_bytes(content)
        return files, load_recipe(folder / RECIPE, overrides)


def _adopted(files: RunFiles, then: Recipe, recipe: Recipe) -> Recipe:
    """Return the recipe with the parent's images where they are now, unless it names others."""
    source = recipe.source
    if source != then.source or source.synthetic is not None:
        return recipe
    images = files.manifest.image_roots.locations
    splits = {
        name: _moved(source, split, images.get(name, source.images(name)))
        for name, split in source.splits.items()
    }
    changes: dict[str, object] = {"root": None, "splits": splits}
    truth = ground_truth_of(files.place)
    if truth:
        changes |= {"ground_truth": truth.relations, "image_data": truth.image_data}
    return recipe.model_copy(update={"source": source.model_copy(update=changes)})


def _moved(source: SourceConfig, split: SplitConfig, images: str) -> SplitConfig:
    """Return a split whose paths do not depend on `source.root`, with its images elsewhere."""
    changes: dict[str, object] = {"images": images}
    for kind in ("annotations", "captions"):
        path = getattr(split, kind)
        changes[kind] = None if path is None else source.path(path)
    return split.model_copy(update=changes)


@dataclass(frozen=True)
class Reuse:
    """What a run takes over from its parent, in `files`.

    Attributes:
        before: the parent's identity.
        identity: what decides the rows of the run, but for the files of its source.
        reused: the stages that do not run again, with their settings.
        changes: the settings that differ, a line each.
    """

    files: RunFiles
    before: RunIdentity
    identity: RunIdentity
    reused: Mapping[str, StageConfig]
    changes: Sequence[str]

    @classmethod
    def plan(cls, run: str, recipe: Recipe, out: Path) -> tuple[Recipe, Reuse]:
        """Return the recipe with the parent's images and models, and what is taken over.

        Raises:
            UserError: not a run; it has other images; nothing differs; or nothing can be taken
                over.
        """
        files, then = _open(run)
        if files.folder and files.folder.resolve() == out.resolve():
            raise UserError(f"--out {out} is the run that --from names; name another folder")
        before = RunIdentity.of_header(files.manifest.identity)
        recipe = with_model_folders(_adopted(files, then, recipe), before.stages, resumes=False)
        now = identity(recipe, stages_sharing_gpus(recipe.stages, recipe.engine, before.stages))
        _check_same_images(files, before, now)
        changes: dict[str, list[str]] = {}
        for stage in STAGES:
            if stage in now.stages or stage in before.stages:
                named_alike = _are_named_alike(then.stages[stage], recipe.stages[stage])
                changes[stage] = _changes(stage, before, now, recipe.stages[stage], named_alike)
        if not any(changes.values()):
            raise UserError(
                f"nothing differs from {run}: change a model or setting (--tagger), or omit --from"
            )
        reusable = _reusable(changes, before, now, recipe.parse)
        # what a stage of the user's own changes may be in any column
        reused = [*takewhile(lambda stage: not recipe.stages[stage].then, reusable)]
        if reusable and not reused:
            raise UserError(
                f"nothing of {run} can be reused: {reusable[0]}.then may change any column; omit"
                " --from"
            )
        if not reused:
            first_changes = next(filter(None, changes.values()))
            raise UserError(
                f"nothing of {run} can be reused, as its first stage differs"
                f" ({'; '.join(first_changes)}); omit --from"
            )
        sections = {stage: recipe.stages[stage] for stage in reused}
        lines = list(chain.from_iterable(changes.values()))
        return recipe, cls(files, before, now, sections, lines)

    @property
    def stages(self) -> list[str]:
        """The stages that run."""
        named = self.identity.stages
        return [stage for stage in STAGES if stage in named and stage not in self.reused]

    @property
    def nouns(self) -> list[str]:
        """What is taken over, in words."""
        return [section.noun for section in self.reused.values()]

    def __str__(self) -> str:
        taken = listed(self.nouns)
        return (
            f"{taken} from {self.files.root}; {listed(self.stages)} to run"
            f" ({'; '.join(self.changes)})"
        )

    def check_rows(self, rows: Mapping[str, range]) -> None:
        """Check that the parent has the rows that are taken over, by split.

        Raises:
            UserError: the parent lacks some of them, or has lost a shard.
        """
        manifest = self.files.manifest
        lacking = 0
        for split, asked in rows.items():
            lacking += sum(stop - start for start, stop in manifest.missing(split, asked))
        if lacking:
            images = sum(map(len, rows.values()))
            raise UserError(
                f"{self.files.root} lacks {lacking:,} of {count(images, 'image')}:"
                " finish it first with the command that started it, without a smaller --limit, or"
                " take fewer with --limit"
            )
        lost = manifest.lost(self.files.storage)
        if lost:
            raise damaged(self.files.root, lost[0].file)

    def header(self, source: Mapping[str, object]) -> RunHeader:
        """Return what the manifest of the run states of it and its parent.

        Raises:
            UserError: that has other files.
        """
        now = replace(self.identity, source=source)
        _check_same_images(self.files, self.before, now, with_files=True)
        stages = {
            stage: (self.before if stage in self.reused else now).stages[stage]
            for stage in now.stages
        }
        fingerprint = self.files.manifest.run.get("fingerprint")
        made_from = replace(now, stages=stages, parent=fingerprint)
        place = str(self.files.folder.resolve()) if self.files.folder else self.files.root
        return {
            "identity": made_from.as_json(),
            "parent": {"run": place, "reused": self.nouns},
        }

    def reader(self, reader: UnitReader) -> ParentReader:
        """Return what reads units from the source indexes and from the parent."""
        return ParentReader(**vars(reader), files=self.files, reused=self.reused)


def _check_same_images(
    files: RunFiles, before: RunIdentity, now: RunIdentity, *, with_files: bool = False
) -> None:
    """Raise UserError if a parent has other images or, `with_files`, other annotation files."""
    old: dict[str, object] = {"format": before.format, "miniworld": before.miniworld}
    new: dict[str, object] = {"format": now.format, "miniworld": now.miniworld}
    if with_files:
        old["source"] = before.source
        new["source"] = now.source
    lines = differences(old, new)
    if lines:
        raise UserError(
            f"{files.root} has other images or annotations ({'; '.join(lines)}); omit --from"
        )


def _reusable(
    changes: Mapping[str, Sequence[str]],
    before: RunIdentity,
    now: RunIdentity,
    parse: ParseConfig,
) -> list[str]:
    """Return the stages before the first one that differs; `changes`: of each stage, in order.

    Not the triplets alone, if attributes are found: rows do not have what assigns these to objects.
    """
    reused = list(takewhile(lambda stage: not changes[stage], changes))
    if "pair" in reused or not parse.finds_attributes:
        return reused
    is_matched_alike = _matching(before) == _matching(now)
    first_changed = next(stage for stage in changes if stage not in reused)
    if first_changed == "pair" and is_matched_alike:
        return reused
    return [stage for stage in reused if stage != "parse"]


def _matching(run: RunIdentity) -> list[object]:
    """Return the settings of the pair stage that decide whose attributes are whose."""
    pair = run.stages.get("pair", {})
    return [pair.get(setting) for setting in ("match", "synonyms", "loose")]


def _are_named_alike(before: StageConfig, now: StageConfig) -> bool:
    """Return whether two recipes have the same settings of a stage, models and files by name."""
    return before.labelling_settings() == now.labelling_settings()


def _changes(
    stage: str, before: RunIdentity, now: RunIdentity, section: StageConfig, named_alike: bool
) -> list[str]:
    """Return the settings of a stage that differ. A model that is not here is the parent's if both
    recipes name the same one (`named_alike`).
    """
    old = before.stages.get(stage, {})
    new = now.stages.get(stage, {})
    kind = section.kind_setting or ("" if old and new else section.setting_of_model)
    if kind and old.get(kind) != new.get(kind):  # others have other settings
        return differences({stage: {kind: old.get(kind)}}, {stage: {kind: new.get(kind)}})
    old_parts: dict[str, object] = {}
    new_parts: dict[str, object] = {}
    if not named_alike or not all(_is_same(old.get(name), new.get(name)) for name in _COMPUTED):
        old_parts[stage] = before.stages.get(stage)
        new_parts[stage] = now.stages.get(stage)
    if stage == "caption" and new["captioner"]:
        old_parts["seed"] = before.seed
        new_parts["seed"] = now.seed
    return differences(old_parts, new_parts)


def _is_same(before: object, now: object) -> bool:
    """Return whether two identities name the same model or file, or it is not here to compare."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        if before.keys() != now.keys():
            return False
        return all(_is_same(before[key], now[key]) for key in before)
    if before == now:
        return True
    if not isinstance(before, str):
        return False
    if before.startswith("sha256:") and not str(now).startswith("sha256:"):
        return True
    return now is None or before.startswith(f"{now} ")


@dataclass(frozen=True)
class ParentReader(UnitReader):
    """Work unit → its records, with the columns that the `reused` stages filled in the `files` of
    the parent.
    """

    files: RunFiles
    reused: Mapping[str, StageConfig]

    def read(self, unit: WorkUnit) -> list[Record]:
        """As `UnitReader.read`; errors of reused stages stay.

        Raises:
            UserError: a shard is damaged, or of others.
        """
        records = super().read(unit)
        columns = self._columns
        for record, row in zip(records, self._rows(unit, columns), strict=True):
            if record.image_id != row.image_id:
                images = f"{row.image_id!r} in place of {record.image_id!r}"
                raise UserError(f"{self.files.root} has image {images}; omit --from")
            self._take_over(record, row, columns)
            if self._has_failed(row):
                record.status = row.status
                record.error = row.error
                record.relations = []
        return records

    def _take_over(self, record: Record, row: Record, columns: Sequence[str]) -> None:
        for column in columns:
            setattr(record, column, getattr(row, column))
        if "ground" not in self.reused:
            record.objects = [box for box in record.objects if box.origin != "grounded"]
        for section in self.reused.values():
            for name in section.left_out:
                if name in row.left_out:
                    record.left_out[name] = row.left_out[name]

    def _has_failed(self, row: Record) -> bool:
        """Return whether a row failed before or in the reused stages, as far as it tells."""
        if row.ok:
            return False
        stage = (row.error or "").partition(":")[0]
        if stage == "worker":  # of whichever stage: if the last reused one has not come to the row
            return not self._is_filled(row)
        return stage in ("source", "load", *self.reused)

    def _is_filled(self, row: Record) -> bool:
        """Return whether the last reused stage has found something in an image."""
        last, section = list(self.reused.items())[-1]
        if last == "ground":
            return any(box.origin == "grounded" for box in row.objects)
        return bool(getattr(row, section.column))

    @property
    def _columns(self) -> list[str]:
        """The columns that are taken over; attributes of objects with the captions' triplets."""
        columns = [section.column for section in self.reused.values()]
        return ["objects", *columns] if "parse" in self.reused else columns

    def _rows(self, unit: WorkUnit, columns: Sequence[str]) -> Iterator[Record]:
        names = list(dict.fromkeys([*_EVERY_ROW, *columns]))
        for shard in self.files.manifest.shards:
            start = max(shard.start, unit.start)
            stop = min(shard.stop, unit.stop)
            if shard.split == unit.split and start < stop:
                table = read_checked(self.files.storage, shard, names, self.files.root)
                yield from from_table(table.slice(start - shard.start, stop - start))
