"""What the experiments compare, read from experiments.yaml: sets of shards, networks, and arms of
several seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from experiments.miniworld.captioner import CaptionerConfig
from experiments.people import Ask
from sgpipe.errors import UserError
from sgpipe.miniworld.relations import COMPOSITIONAL
from sgpipe.recipe import Config, MiniworldConfig, PackagedModel, packaged_model
from sgpipe.training.recipe import Kind, TrainRecipe, load_train_recipe
from sgpipe.utils.config_file import load, read_yaml, recipe_folder
from sgpipe.utils.hashing import fingerprint

PLAN = Path(__file__).parent / "experiments.yaml"
SPLITS = {"seen": "val", "unseen": COMPOSITIONAL}  # combinations that occur in training, and others

Kept = Literal["labels", "candidates", "overlapping", "true"]


class CaptionerOfFew(Config):
    """A captioner trained on the images of a set alone."""

    of: str = Field(description="the set")
    steps: int = Field(ge=1)


class LabelsConfig(Config):
    """How images get pseudo-labels: by the recipe "miniworld", with `set` laid over it."""

    tagger: str | None = Field(None, description="network of the plan; null: the packaged one")
    layout: str | None = Field(
        None, description="set whose annotations teach a layout model, which tags instead"
    )
    captioner: CaptionerOfFew | None = Field(
        None, description="null: the packaged one, which saw 40,000 images"
    )
    set: dict[str, Any] = Field(
        default_factory=dict, description="settings of the recipe by dotted key"
    )
    keep: Kept = Field(
        "labels",
        description=(
            "relations that the shards get: the tagger's, all candidates, those between overlapping"
            " boxes, or those that are true"
        ),
    )


class JudgedConfig(Config):
    """What simulated people say of pseudo-labels; networks learn only from that. See
    `experiments.people.judge`.
    """

    ask: Ask
    answers: int = Field(ge=1)
    slips: float = Field(0.05, ge=0, le=1, description="share of the answers that are wrong")


class SetConfig(Config):
    """Images of the miniworld, with their ground truth or with pseudo-labels."""

    drawn: MiniworldConfig
    labels: LabelsConfig | None = Field(None, description="null: the ground truth")
    product: tuple[str, str] | None = Field(
        None,
        description=(
            "sets with pseudo-labels of the same images: relations of both, with the geometric mean"
            " of their confidences"
        ),
    )
    judged: JudgedConfig | None = Field(
        None, description="people who judge the pseudo-labels; null: nobody"
    )
    interactions: bool = Field(
        False, description="of the ground truth only what persons do, in HICO-DET's form"
    )
    own: bool = Field(
        False,
        description="every seed of an arm has its own images, and its own tagger of such images",
    )
    half: bool = Field(
        False,
        description=(
            "half of the true relations are hidden (experiments.hidden_relations); labels extend"
            " the rest"
        ),
    )


class Part(Config):
    """Training images of a set."""

    set: str
    limit: int | None = Field(
        None, ge=1, description="as many random images, others for every seed; null: all"
    )
    weight: float = 1.0


class Stage(Config):
    """A training, which starts from the network of the stage before, from another network, or from
    nothing.
    """

    name: str
    recipe: Literal["detector", "parseda", "tagger"]
    init: str | None = Field(
        None, description="network of the plan; null: the stage before, or nothing"
    )
    data: tuple[Part, ...]
    steps: int = Field(ge=1)
    validate_every: int | None = Field(
        None, ge=1, description="steps between the points of a curve; null: no curve"
    )
    set: dict[str, Any] = Field(
        default_factory=dict, description="settings of the training recipe by dotted key"
    )
    calibrated_by: str | None = Field(
        None,
        description="pseudo-labelled set by whose ground truth confidences become probabilities",
    )
    measured: bool = True

    def load_recipe(self, overrides: dict[str, Any]) -> TrainRecipe:
        """Raises UserError: as `load_train_recipe`."""
        return load_train_recipe(
            self.recipe_file, {"optimisation.steps": self.steps, **self.set, **overrides}
        )

    @property
    def recipe_file(self) -> Path:
        return recipe_folder() / "miniworld" / f"{self.recipe}.yaml"

    @property
    def kind(self) -> Kind:
        return "tagger" if self.recipe == "tagger" else "parseda"

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of what is measured after this stage; see `experiments.measures`."""
        if not self.measured:
            return ()
        return tuple(f"{split} {'AP' if self.kind == 'tagger' else 'mAP'}" for split in SPLITS)


class Expected(Config):
    """The order of arms, from best to worst, that is expected for a measure after a stage."""

    measure: str
    stage: str
    order: tuple[str, ...] = Field(min_length=2)


class Experiment(Config):
    """One question: its arms, and the answer that is expected."""

    title: str
    question: str
    seeds: int = Field(ge=1)
    compared_sets: tuple[str, ...] = Field(
        (), description="sets whose labels are compared with the ground truth"
    )
    arms: dict[str, tuple[Stage, ...]]
    expected: tuple[Expected, ...]
    shared: tuple[str, ...] = Field(
        (), description="arms of one network, from which all seeds of others start"
    )
    limits: str | None = Field(None, description="what the miniature cannot show")

    def seeds_of(self, arm: str) -> range:
        return range(1 if arm in self.shared else self.seeds)

    def label_sets(self, plan: Plan) -> list[tuple[str, int]]:
        """Return the sets whose labels are compared with the ground truth, and the seeds for which
        they are made.
        """
        seeds = {name: self.seeds if plan.sets[name].own else 1 for name in self.compared_sets}
        return [(name, seed) for name in self.compared_sets for seed in range(seeds[name])]


class Plan(Config):
    """All experiments, and what they share."""

    measured_images: int = Field(
        500,
        ge=1,
        description=(
            "images of each split on which networks are measured; results do not name the number,"
            " so remove them if it changes"
        ),
    )
    curve_images: int = Field(200, ge=1, description="other images, for the points of a curve")
    sets: dict[str, SetConfig]
    networks: dict[str, Stage]
    experiments: dict[str, Experiment]

    def seed_of(self, name: str, seed: int) -> int:
        """Return the seed for which a set is made: that of the arm if the set is its own, or else
        0.
        """
        return seed if self.sets[name].own else 0

    def drawn(self, name: str, seed: int) -> MiniworldConfig:
        """Return the images of a set for a seed of an arm."""
        drawn = self.sets[name].drawn
        return drawn.model_copy(update={"seed": drawn.seed + self.seed_of(name, seed)})

    def set_key(self, name: str, seed: int = 0) -> str:
        """A hash of all settings that decide the shards of a set for a seed of an arm."""
        config = self.sets[name]
        drawn = self.drawn(name, seed)
        if config.product is not None:
            return fingerprint({"product": [self.set_key(part, seed) for part in config.product]})
        if config.labels is None:
            half = {"half": True} if config.half else {}
            return fingerprint(
                {"drawn": drawn.model_dump(), "interactions": config.interactions, **half}
            )
        run = self.run_key(drawn, config.labels, self.seed_of(name, seed), config.half)
        judged = {} if config.judged is None else {"judged": config.judged.model_dump()}
        return fingerprint({"run": run, "keep": config.labels.keep, **judged})

    def run_key(self, drawn: MiniworldConfig, labels: LabelsConfig, seed: int, half: bool) -> str:
        """A hash of all settings that decide the labels of a run, and of the packaged models."""
        tagger = (
            _packaged("tagger") if labels.tagger is None else self.shared_key(labels.tagger, seed)
        )
        settings = dict(_settings(recipe_folder() / "miniworld.yaml"))
        if settings.get("pair") == {"loose": False}:  # which is as before there was that setting
            del settings["pair"]
        recipe = {
            "recipe": settings,
            "set": labels.set,
            "drawn": drawn.model_dump(),
            **({"half": True} if half else {}),
        }
        if labels.layout is not None:
            tagger = self.set_key(labels.layout, seed)
            recipe["layout"] = True
        captioner: Any = _packaged("captioner")
        if labels.captioner is not None:
            captioner = self.captioner(labels.captioner, seed).model_dump()
        return fingerprint({**recipe, "tagger": tagger, "captioner": captioner})

    def captioner(self, few: CaptionerOfFew, seed: int) -> CaptionerConfig:
        """Return how the captioner is trained that saw only the images of a set for a seed of an
        arm.
        """
        drawn = self.drawn(few.of, seed)
        overrides = {"seed": drawn.seed, "train_images": drawn.images, "steps": few.steps}
        return load(CaptionerConfig, "captioner", recipe_folder() / "miniworld", overrides)

    def shared_seed(self, name: str, seed: int) -> int:
        """Return the seed of a network of the plan: that of the arm if it learns from sets of its
        own, or else 0.
        """
        return seed if any(self.sets[part.set].own for part in self.networks[name].data) else 0

    def shared_key(self, name: str, seed: int) -> str:
        """The hash of a network of the plan for a seed of an arm."""
        stage = self.networks[name]
        seed = self.shared_seed(name, seed)
        return self.network_key(
            stage, seed, None if stage.init is None else self.shared_key(stage.init, seed)
        )

    def network_key(self, stage: Stage, seed: int, start: str | None) -> str:
        """A hash of all settings that decide the weights. `start`: that of the network from which
        it starts.
        """
        if stage.init is not None:
            start = self.shared_key(stage.init, seed)
        settings = stage.model_dump(include={"steps", "set", "validate_every"})
        settings["recipe"] = _settings(stage.recipe_file)
        if stage.calibrated_by is not None:
            settings["calibrated_by"] = self.set_key(stage.calibrated_by, seed)
        data = [
            {**part.model_dump(exclude={"set"}), "shards": self.set_key(part.set, seed)}
            for part in stage.data
        ]
        return fingerprint({**settings, "data": data, "seed": seed, "start": start})

    def stage_keys(self, stages: Sequence[Stage], seed: int) -> list[str]:
        """The hash of each stage of an arm."""
        keys: list[str] = []
        for stage in stages:
            keys.append(self.network_key(stage, seed, keys[-1] if keys else None))
        return keys


@cache
def _settings(recipe: Path) -> Mapping[str, Any]:
    """Read a recipe, which is part of many keys, once."""
    return read_yaml(recipe)


@cache
def _packaged(name: PackagedModel) -> str:
    """A hash of the weights of a packaged model."""
    return hashlib.sha256((packaged_model(name) / "model.safetensors").read_bytes()).hexdigest()[
        :16
    ]


def load_plan(path: Path = PLAN) -> Plan:
    """Raises UserError: the file is missing or invalid, or a name in it is unknown."""
    try:
        plan = Plan.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as reason:
        raise UserError(f"{path} is not a plan of experiments: {reason}") from None
    for name, experiment in plan.experiments.items():
        for expected in experiment.expected:
            for arm in expected.order:
                _check_expected(path, name, experiment, expected, arm)
    networks = {stage.init for stage in _stages(plan)}
    networks |= {labels.tagger for labels in _labels(plan)}
    _check_known(path, "network", networks, plan.networks)
    _check_known(path, "set", _named_sets(plan), plan.sets)
    return plan


def _check_expected(
    path: Path, name: str, experiment: Experiment, expected: Expected, arm: str
) -> None:
    """Raises UserError: an arm or its measure, of which something is expected, does not exist."""
    if arm not in experiment.arms:
        raise UserError(
            f"{path}: experiment {name} expects something of {arm!r}, which is not an arm"
        )
    measures = {stage.name: stage.measures for stage in reversed(experiment.arms[arm])}
    if expected.measure not in measures.get(expected.stage, ()):
        raise UserError(
            f"{path}: {arm!r} of {name} has no {expected.measure!r} after {expected.stage!r}"
        )


def _check_known(
    path: Path, kind: str, names: Iterable[str | None], known: Container[str | None]
) -> None:
    """Raises UserError: one of the names is not known; None is no name."""
    missing = sorted(name for name in names if name is not None and name not in known)
    if missing:
        raise UserError(f"{path} names the {kind} {missing[0]!r}, which does not exist")


def _stages(plan: Plan) -> list[Stage]:
    """Return the stages of networks and of the arms of all experiments."""
    stages: list[Stage] = [*plan.networks.values()]
    for experiment in plan.experiments.values():
        stages += chain.from_iterable(experiment.arms.values())
    return stages


def _labels(plan: Plan) -> list[LabelsConfig]:
    return [item.labels for item in plan.sets.values() if item.labels]


def _named_sets(plan: Plan) -> set[str | None]:
    """Return the names of sets that stages, labels, sets and experiments refer to."""
    names: set[str | None] = set()
    for stage in _stages(plan):
        names.add(stage.calibrated_by)
        names.update(part.set for part in stage.data)
    for labels in _labels(plan):
        names.add(labels.layout)
        if labels.captioner:
            names.add(labels.captioner.of)
    for item in plan.sets.values():
        names.update(item.product or ())
    for experiment in plan.experiments.values():
        names.update(experiment.compared_sets)
    return names
