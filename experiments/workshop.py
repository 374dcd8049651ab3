"""Make what the experiments need, each thing once: drawn images, labels, trained networks.

Everything lies in one folder, by name and a hash of all settings that decide it. A process that is
killed leaves work that the next one resumes; of two processes that need the same thing, one waits
for the other.
"""

from __future__ import annotations

import fcntl
import json
import math
import random
import resource
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.hidden_relations import SEED, half_of
from experiments.miniworld.captioner import CaptionerConfig
from experiments.miniworld.train_captioner import train_captioner
from experiments.people import Statement, judge, statement_of, statements_of
from experiments.plan import JudgedConfig, Kept, LabelsConfig, Part, Plan, Stage
from sgpipe.generation.run import generate
from sgpipe.miniworld.dataset import IMAGES, INTERACTION_CLASSES, INTERACTIONS, SCENE_GRAPHS
from sgpipe.recipe import MiniworldConfig, load_recipe, packaged_model
from sgpipe.records import Record, Relation
from sgpipe.sources.annotated import AnnotationSource
from sgpipe.sources.hoi import hico_source
from sgpipe.sources.import_run import import_annotations
from sgpipe.sources.miniworld import MiniworldFiles, import_graphs, split_name
from sgpipe.stages.tag.methods import candidates, overlapping_pairs
from sgpipe.stats.calibrate import calibrate, judge_by_truth
from sgpipe.storage.judgements import JUDGEMENTS
from sgpipe.storage.manifest import MANIFEST, Manifest
from sgpipe.storage.run_folder import GroundTruth, ground_truth_of
from sgpipe.storage.run_records import iter_records
from sgpipe.training.layout import train_layout
from sgpipe.training.recipe import TrainRecipe
from sgpipe.training.run import train
from sgpipe.utils.atomic import write_text
from sgpipe.utils.console import Progress
from sgpipe.utils.hashing import fingerprint

_QUIET = Progress(Console(quiet=True))
CALIBRATION = "calibration.json"
CURVE_SEED = 1  # the images of a curve are not those of the final figures


@dataclass(frozen=True)
class Network:
    """A trained network, and the hash of all that decides it."""

    folder: Path
    key: str


class Drawn(MiniworldFiles):
    """Drawn images with their ground truth, also what persons do in HICO-DET's form."""

    @property
    def interactions(self) -> Path:
        """Shards with the relations of persons."""
        return self.root / "interactions"

    @property
    def annotations(self) -> Path:
        return self.world / INTERACTIONS

    @property
    def classes(self) -> Path:
        return self.world / INTERACTION_CLASSES


class Workshop:
    """Makes the sets and networks of a plan in a folder."""

    def __init__(self, plan: Plan, root: Path) -> None:
        self.plan = plan
        self.root = root
        self._labelling = 0.0

    def cpu_seconds(self) -> float:
        """CPU time of this process and of the children that have ended, and time in which Ray's
        workers labelled.
        """
        usage, children = (
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        return (
            usage.ru_utime
            + usage.ru_stime
            + children.ru_utime
            + children.ru_stime
            + self._labelling
        )

    def drawn(self, config: MiniworldConfig) -> Drawn:
        """The images of a configuration with their ground truth."""
        key = fingerprint(config.model_dump())
        return Drawn(self._once("drawn", f"{config.split}-{key}", partial(_draw, config)))

    def shards(self, name: str, seed: int = 0) -> Path:
        """The shards of a set for a seed of an arm. Raises UserError, EngineError: as
        `generate`.
        """
        config = self.plan.sets[name]
        if config.product is not None:
            first, second = (self.shards(part, seed) for part in config.product)
            key = self.plan.set_key(name, seed)
            return self._once("sets", f"{name}-{key}", partial(_multiply, first, second))
        if config.labels is None:
            if config.half:
                return self._half(self.plan.drawn(name, seed))
            drawn = self.drawn(self.plan.drawn(name, seed))
            return drawn.interactions if config.interactions else drawn.all_relations
        run = self._run(name, config.labels, seed)
        if config.judged is not None:
            key = self.plan.set_key(name, seed)
            set_seed = self.plan.seed_of(name, seed)
            return self._once(
                "sets", f"{name}-{key}", partial(_judge, run, config.judged, set_seed)
            )
        if config.labels.keep == "labels":
            return run
        return self._once(
            "sets",
            f"{name}-{self.plan.set_key(name, seed)}",
            partial(_derive, run, config.labels.keep),
        )

    def ground_truth(self, name: str, seed: int = 0) -> GroundTruth:
        """What the images of a pseudo-labelled set show."""
        config = self.plan.sets[name]
        if config.product is not None:
            return self.ground_truth(config.product[0], seed)
        assert config.labels is not None
        truth = ground_truth_of(self._run(name, config.labels, seed))
        assert truth is not None
        return truth

    def _run(self, name: str, labels: LabelsConfig, seed: int) -> Path:
        drawn = self.plan.drawn(name, seed)
        seed = self.plan.seed_of(name, seed)
        tagger = packaged_model("tagger")
        if labels.tagger is not None:
            tagger = self.shared_network(labels.tagger, seed).folder
        half = self.plan.sets[name].half
        source: dict[str, Any] = {
            f"source.miniworld.{name}": value for name, value in drawn.model_dump().items()
        }
        if half:
            source = {"source.format": "run", "source.run": str(self._half(drawn))}
        if labels.layout is not None:
            tagger = self._layout_model(labels.layout, seed)
            source["tag.method"] = "layout"
        overrides = {**source, "tag.tagger": str(tagger), "engine.cpus": 1, **labels.set}
        if labels.captioner is not None:
            overrides["caption.captioner"] = str(
                self._captioner(self.plan.captioner(labels.captioner, seed))
            )

        def make(out: Path) -> None:
            summary = generate(load_recipe("miniworld", overrides), out, _QUIET)
            self._labelling += sum(summary.seconds.values())

        key = self.plan.run_key(drawn, labels, seed, half)
        return self._once("runs", f"{drawn.split}-{drawn.images}-{key}", make)

    def _captioner(self, config: CaptionerConfig) -> Path:
        """A captioner that saw only the images of its configuration."""

        def make(out: Path) -> None:
            shutil.rmtree(out, ignore_errors=True)
            train_captioner(config, out, _QUIET)

        return self._once("captioners", fingerprint(config.model_dump()), make)

    def _layout_model(self, name: str, seed: int) -> Path:
        """A layout model that learned from the relations of a set."""

        def make(out: Path) -> None:
            shutil.rmtree(out, ignore_errors=True)
            train_layout([str(self.shards(name, seed))], out, _QUIET)

        return self._once("layouts", f"{name}-{self.plan.set_key(name, seed)}", make)

    def _half(self, config: MiniworldConfig) -> Path:
        """The shards of drawn images with half of their true relations."""
        drawn = self.drawn(config)

        def make(out: Path) -> None:
            graphs = json.loads((drawn.world / SCENE_GRAPHS).read_text(encoding="utf-8"))
            file = out.with_suffix(".graphs.json")
            write_text(file, json.dumps(half_of(graphs, random.Random(SEED))))
            import_graphs(file, config.split, out, drawn.world / IMAGES)

        return self._once("halves", drawn.root.name, make)

    def shared_network(self, name: str, seed: int) -> Network:
        """The network of the plan by this name, for a seed of an arm. Raises as `network`."""
        return self.network(self.plan.networks[name], self.plan.shared_seed(name, seed))

    def network(self, stage: Stage, seed: int, before: Network | None = None) -> Network:
        """The network that a stage trains.

        Args:
            before: the network of the stage before, from which the training starts unless the stage
                names another.

        Raises:
            UserError, EngineError: as `train`; DivergedError if the loss is not finite.
        """
        start = before
        if stage.init is not None:
            start = self.shared_network(stage.init, seed)
        key = self.plan.network_key(stage, seed, start.key if start else None)

        def make(out: Path) -> None:
            train(self._recipe(stage, seed, start), out, _QUIET)

        return Network(self._once("networks", key, make) / "last", key)

    def _recipe(self, stage: Stage, seed: int, start: Network | None) -> TrainRecipe:
        """The training recipe of a stage; what it needs is made."""
        overrides: dict[str, Any] = {
            "seed": seed,
            "model.init": str(start.folder) if start else None,
            "data.train": [self._training_data(part, seed) for part in stage.data],
            "output.tensorboard": False,
            "output.checkpoint_every": 100,
        }
        if stage.calibrated_by is not None:
            overrides["data.calibration"] = str(self.calibration(stage.calibrated_by, seed))
        if stage.validate_every is not None:
            val = self.drawn(
                MiniworldConfig(images=self.plan.curve_images, split="val", seed=CURVE_SEED)
            )
            overrides["data.val"] = [{"shards": str(val.all_relations)}]
            overrides["output.validate_every_steps"] = stage.validate_every
        return stage.load_recipe(overrides)

    def calibration(self, name: str, seed: int = 0) -> Path:
        """A calibration of the tagger of a set, by the ground truth of its images."""

        def make(out: Path) -> None:
            run = self.shards(name, seed)
            out.mkdir(exist_ok=True)
            calibrate(run, judge_by_truth(run, self.ground_truth(name, seed)))[0].save(
                out / CALIBRATION
            )

        return (
            self._once("calibrations", f"{name}-{self.plan.set_key(name, seed)}", make)
            / CALIBRATION
        )

    def _training_data(self, part: Part, seed: int) -> dict[str, Any]:
        limit = {} if part.limit is None else {"limit": part.limit, "limit_seed": seed}
        judged = self.plan.sets[part.set].judged is not None
        return {
            "shards": str(self.shards(part.set, seed)),
            "weight": part.weight,
            "judged": judged,
            **limit,
        }

    def _once(self, kind: str, name: str, make: Callable[[Path], None]) -> Path:
        """The folder of a thing; `make` makes or resumes it unless it is complete."""
        folder = self.root / kind / name
        done = folder.with_name(f"{name}.json")
        with turn(folder.with_name(f"{name}.lock")):
            if not done.exists():
                before = self.cpu_seconds()
                make(folder)
                write_text(done, json.dumps({"cpu_seconds": round(self.cpu_seconds() - before, 1)}))
        return folder


@contextmanager
def turn(file: Path) -> Iterator[None]:
    """Wait until no other process is in the block; the lock of a killed process ends with it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _draw(config: MiniworldConfig, root: Path) -> None:
    drawn = Drawn(root)
    drawn.make(config)
    source = hico_source(drawn.annotations, split_name(config.split), drawn.classes)
    import_annotations(source, drawn.world / IMAGES, drawn.interactions, _QUIET)


def _derive(run: Path, keep: Kept, out: Path) -> None:
    """Write the candidates of a run, or some of them, as relations without confidence."""
    truth = ground_truth_of(run)
    assert truth is not None
    statements = {
        record.image_id: statements_of(record) for record in iter_records(truth.relations)
    }
    [(split, images)] = Manifest.load(run).image_roots.locations.items()

    def read(problems: Counter[str]) -> Iterator[Record]:
        for record in iter_records(run):
            true = statements.get(record.image_id, frozenset())
            yield replace(record, relations=_kept(record, keep, true))

    source = AnnotationSource(
        "miniworld", split, read, {"annotations": run / MANIFEST}, {"keep": keep}
    )
    import_annotations(source, images, out, _QUIET)


def _multiply(run: Path, other: Path, out: Path) -> None:
    """Copy a run with the relations that the other has, too, and the geometric mean of both
    confidences.
    """
    [(split, images)] = Manifest.load(run).image_roots.locations.items()
    other_records = {record.image_id: record for record in iter_records(other)}

    def read(problems: Counter[str]) -> Iterator[Record]:
        for record in iter_records(run):
            confidences = _confidences(other_records[record.image_id])
            relations = []
            for relation in record.relations:
                key = (relation.subject, relation.object, relation.predicate)
                if key in confidences:
                    confidence = math.sqrt((relation.confidence or 0) * confidences[key])
                    relations.append(replace(relation, confidence=confidence))
            yield replace(record, relations=relations)

    source = AnnotationSource("miniworld", split, read, {"annotations": run / MANIFEST}, {})
    import_annotations(source, images, out, _QUIET)


def _confidences(record: Record) -> dict[tuple[int, int, str], float]:
    """Return the confidence of each subject, object and predicate."""
    return {
        (relation.subject, relation.object, relation.predicate): relation.confidence or 0
        for relation in record.relations
    }


def _judge(run: Path, judged: JudgedConfig, seed: int, out: Path) -> None:
    """Copy a run, and let people judge it."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("cache", JUDGEMENTS))
    judge(out, judged.ask, judged.answers, judged.slips, seed)


def _kept(record: Record, keep: Kept, true: frozenset[Statement]) -> list[Relation]:
    candidates_of_record = candidates(
        overlapping_pairs(record) if keep == "overlapping" else record.pairs, None, "captions"
    )
    return [
        item
        for item in candidates_of_record
        if keep != "true" or statement_of(record, item) in true
    ]
