"""The identity of a run, everything that decides its labels, and `--from`: what a run takes over
from its parent.

The identity has the content of models and annotation files. A changed one is another run. Settings
that only distribute work (actors, batch sizes, devices) do not count. A parent's rows are taken
over up to the first stage that differs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError
from sgpipe.files.locations import StorePath
from sgpipe.generation.engine import UnitReader, WorkUnit, stages_sharing_gpus
from sgpipe.recipe import (
    STAGES,
    IdentityFacts,
    Recipe,
    StageConfig,
    load_recipe,
    with_model_folders,
)
from sgpipe.records import Record, from_table
from sgpipe.sources.opening import open_parent
from sgpipe.stages.caption.captioner import settings_of
from sgpipe.stages.parse.stage import parser_identity
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
_FILES = (
    "detector",
    "captioner",
    "model",
    "synonyms",
    "prior",
)  # settings that an identity has the content of
_MATCHING = (
    "match",
    "synonyms",
    "loose",
)  # settings of the pair stage that decide whose attributes are whose


def identity(recipe: Recipe, sharing: Collection[str] = ()) -> dict[str, Any]:
    """Return what decides the labels but the files of the source, as plain values.

    Args:
        sharing: stages that share this machine's GPUs unasked.
    """
    parts: dict[str, Any] = {
        "sgpipe": __version__,
        "seed": recipe.seed,
        "format": recipe.source.format,
    }
    parts["source"] = {}  # it is not read yet
    parts["miniworld"] = recipe.source.synthetic
    if not recipe.source.open_images:
        parts["open_images"] = False
    sections = recipe.stages
    sections["caption"] = settings_of(recipe.caption)
    facts = IdentityFacts(recipe.seed, recipe.source.format == "run")
    if recipe.detects:
        parts["detect"] = recipe.detect.identity(facts)
    for name in ("caption", "parse", "pair", "tag"):
        of_stage = replace(facts, shares_gpu=name in sharing)
        parts[name] = sections[name].identity(of_stage)
    parts["parse"]["model"] = parser_identity(recipe.parse)
    if recipe.ground.detector is not None:
        parts["ground"] = recipe.ground.identity(facts) | recipe.pair.matching(facts)
    return parts


def source_identity(indexes: Mapping[str, SourceIndex]) -> dict[str, Any]:
    """Return the content of the annotation and caption files of each split, or the run that is
    extended.
    """
    return {
        split: (
            {key: index.meta.get(f"{key}_sha256") for key in ("annotations", "captions")}
            | {key: index.meta[key] for key in ("run",) if key in index.meta}
        )
        for split, index in indexes.items()
    }


def parent_recipe(run: str, overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a run with overrides, stored elsewhere. Raises UserError: see
    `_open`.
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
    return recipe


def extended_recipe(run: str, overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe that extends a run: its own, with its captions if it has any; of an import
    the miniworld's.
    """
    manifest = open_parent(run).manifest
    if any(shard.counts.get("captions") for shard in manifest.shards):
        overrides = {"caption.captioner": None, **overrides}
    if "tag" not in manifest.run.get("identity", {}):
        return load_recipe("miniworld", overrides)
    return parent_recipe(run, {"limit": None, **overrides})


def _open(run: str, overrides: Mapping[str, Any] | None = None) -> tuple[RunFiles, Recipe]:
    """Return a run and its recipe. Raises UserError: as `open_parent`; or `sgpipe generate` did not
    make its rows.
    """
    files = open_parent(run)
    identity = files.manifest.run.get("identity", {})
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
    changes = dict[str, Any]()
    if source == then.source and source.synthetic is None:
        images = files.manifest.image_roots.locations
        splits = {}
        for name, split in source.splits.items():
            paths = {kind: path and source.path(path) for kind, path in split if kind != "images"}
            splits[name] = split.model_copy(
                update={**paths, "images": images.get(name, source.images(name))}
            )
        changes = {"root": None, "splits": splits}
        truth = ground_truth_of(files.place)
        if truth:
            changes |= {"ground_truth": truth.relations, "image_data": truth.image_data}
    return recipe.model_copy(update={"source": source.model_copy(update=changes)})


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
    before: Mapping[str, Any]
    identity: Mapping[str, Any]
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
        before = files.manifest.run["identity"]
        recipe = with_model_folders(_adopted(files, then, recipe), before, resumes=False)
        now = identity(recipe, stages_sharing_gpus(recipe.stages, recipe.engine, before))
        _check_same(files, now, "format", "miniworld")
        stages = [stage for stage in STAGES if stage in now or stage in before]
        changed = {stage: _changes(stage, before, now, then, recipe) for stage in stages}
        first = next((stage for stage in changed if changed[stage]), None)
        if first is None:
            raise UserError(
                f"nothing differs from {run}: change a model or setting (--tagger), or omit --from"
            )
        reused = stages[: stages.index(first)]
        matched = [
            {name: made.get("pair", {}).get(name) for name in _MATCHING} for made in (before, now)
        ]
        described = recipe.parse.attributes and recipe.parse.parser in ("rules", "learned")
        if "pair" not in reused and described and (first != "pair" or matched[0] != matched[1]):
            reused = [
                stage for stage in reused if stage != "parse"
            ]  # attributes depend on what rows do not have
        if not reused:
            named = "; ".join(changed[first])
            raise UserError(
                f"nothing of {run} can be reused, as its first stage differs ({named}); omit --from"
            )
        reuse = cls(
            files,
            before,
            now,
            {stage: recipe.stages[stage] for stage in reused},
            [line for lines in changed.values() for line in lines],
        )
        return recipe, reuse

    @property
    def stages(self) -> list[str]:
        return [stage for stage in STAGES if stage in self.identity and stage not in self.reused]

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

    def check_rows(self, rows: Mapping[str, int]) -> None:
        """Raises UserError: the parent lacks some of the first `rows` of a split, or has lost a
        shard.
        """
        missing = self.files.manifest.missing
        lacking = sum(
            stop - start for split, n in rows.items() for start, stop in missing(split, n)
        )
        if lacking:
            raise UserError(
                f"{self.files.root} lacks {lacking:,} of {count(sum(rows.values()), 'image')}:"
                " finish it first with the command that started it, without a smaller --limit, or"
                " take fewer with --limit"
            )
        lost = self.files.manifest.lost(self.files.storage)
        if lost:
            raise damaged(self.files.root, lost[0].file)

    def header(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the manifest of the run states of it and its parent. Raises UserError: that
        has other files.
        """
        now = {**self.identity, "source": dict(source)}
        _check_same(self.files, now, "format", "miniworld", "source")
        now |= {stage: self.before[stage] for stage in self.reused}
        now["parent"] = self.files.manifest.run.get("fingerprint")
        place = str(self.files.folder.resolve()) if self.files.folder else self.files.root
        return {
            "identity": now,
            "parent": {"run": place, "reused": self.nouns},
        }

    def reader(self, reader: UnitReader) -> ParentReader:
        return ParentReader(reader.storage, reader.indexes, self.files, self.reused)


def _check_same(files: RunFiles, now: Mapping[str, Any], *keys: str) -> None:
    before = files.manifest.run["identity"]
    lines = differences(*({key: made.get(key) for key in keys} for made in (before, now)))
    if lines:
        raise UserError(
            f"{files.root} has other images or annotations ({'; '.join(lines)}); omit --from"
        )


def _changes(
    stage: str, before: Mapping[str, Any], now: Mapping[str, Any], then: Recipe, recipe: Recipe
) -> list[str]:
    """Return the settings that differ. A model that is not here is the parent's if both recipes
    name the same one.
    """
    keys = ["caption", "seed"] if stage == "caption" and now["caption"]["captioner"] else [stage]
    old = before.get(stage, {})
    new = now.get(stage, {})
    config = recipe.stages[stage]
    kind = config.kind_setting or ("" if old and new else config.setting_of_model)
    if kind and old.get(kind) != new.get(kind):  # others have other settings
        return differences({stage: {kind: old.get(kind)}}, {stage: {kind: new.get(kind)}})
    named_alike = then.stages[stage].labelling_settings() == config.labelling_settings()
    if named_alike and all(
        _is_same(old.get(name), new.get(name)) for name in (*_FILES, "dtype", "seed")
    ):
        keys = keys[1:]
    return differences({key: before.get(key) for key in keys}, {key: now.get(key) for key in keys})


def _is_same(before: Any, now: Any) -> bool:
    """Return whether two identities name the same model or file, or it is not here to compare."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return before.keys() == now.keys() and all(
            _is_same(before[key], now[key]) for key in before
        )
    if before == now or not isinstance(before, str):
        return bool(before == now)
    is_hash = before.startswith("sha256:") and not str(now).startswith("sha256:")
    return now is None or is_hash or before.startswith(f"{now} ")


@dataclass(frozen=True)
class ParentReader(UnitReader):
    """Work unit → its records, with the columns that the `reused` stages filled in the `files` of
    the parent.
    """

    files: RunFiles
    reused: Mapping[str, StageConfig]

    def read(self, unit: WorkUnit) -> list[Record]:
        """As `UnitReader.read`; errors of reused stages stay. Raises UserError: a shard is damaged,
        or of others.
        """
        records = super().read(unit)
        columns = self._columns
        limited = {name for config in self.reused.values() for name in config.left_out}
        for record, row in zip(records, self._rows(unit), strict=True):
            if record.image_id != row.image_id:
                images = f"{row.image_id!r} in place of {record.image_id!r}"
                raise UserError(f"{self.files.root} has image {images}; omit --from")
            for column in columns:
                setattr(record, column, getattr(row, column))
            if "ground" not in self.reused:
                record.objects = [box for box in record.objects if box.origin != "grounded"]
            record.left_out |= {
                what: number for what, number in row.left_out.items() if what in limited
            }
            stage = (row.error or "").partition(":")[0]
            ground = [*self.reused][-1] == "ground"
            filled = any(
                not ground or each.origin == "grounded" for each in getattr(row, columns[-1])
            )
            unknown = stage == "worker" and not filled
            if not row.ok and (stage in ("source", "load", *self.reused) or unknown):
                record.status = row.status
                record.error = row.error
                record.relations = []
        return records

    @property
    def _columns(self) -> list[str]:
        """The columns that are taken over; attributes of objects with the captions' triplets."""
        return [
            *(["objects"] if "parse" in self.reused else []),
            *(config.column for config in self.reused.values()),
        ]

    def _rows(self, unit: WorkUnit) -> Iterator[Record]:
        columns = [*_EVERY_ROW, *dict.fromkeys(self._columns)]
        for shard in self.files.manifest.shards:
            start = max(shard.start, unit.start)
            stop = min(shard.stop, unit.stop)
            if shard.split == unit.split and start < stop:
                table = read_checked(self.files.storage, shard, columns, self.files.root)
                yield from from_table(table.slice(start - shard.start, stop - start))
