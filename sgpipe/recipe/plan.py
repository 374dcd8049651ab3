"""What is settled of a recipe before its stages are built."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from sgpipe.recipe.recipe import STAGES, Recipe
from sgpipe.recipe.stage import ENGINE_KEY, Endpoints, Requests, Resources, StageConfig
from sgpipe.recipe.stages import (
    CaptionConfig,
    DetectConfig,
    GroundConfig,
    PairConfig,
    ParseConfig,
    TagConfig,
)


@dataclass(frozen=True)
class StagePlan:
    """The stages that run and their settings, from which workers build them.

    Attributes:
        names: of the stages that run, in their order.
        detect, caption, parse, ground, pair, tag: their settings, with the models that are loaded.
        seed: of the run.
        dataset: the format of the source.
        opens_images: whether images are opened that no model looks at.
    """

    names: tuple[str, ...]
    detect: DetectConfig
    caption: CaptionConfig
    parse: ParseConfig
    ground: GroundConfig
    pair: PairConfig
    tag: TagConfig
    seed: int
    dataset: str
    opens_images: bool

    @classmethod
    def of_recipe(cls, recipe: Recipe, skipped: Collection[str] = ()) -> StagePlan:
        """Return the plan of a recipe whose models are in place; `skipped`: stages that another run
        has done.
        """
        absent = {*skipped, *recipe.absent}
        return cls(
            names=tuple(name for name in STAGES if name not in absent),
            detect=recipe.detect,
            caption=recipe.caption,
            parse=recipe.parse,
            ground=recipe.ground,
            pair=recipe.pair,
            tag=recipe.tag,
            seed=recipe.seed,
            dataset=recipe.source.format,
            opens_images=recipe.source.open_images,
        )

    @property
    def detects(self) -> bool:
        """Whether the boxes are those of a detector, found by this run or by its parent."""
        return self.dataset == "folder" and self.detect.detector is not None

    @property
    def skipped(self) -> set[str]:
        """The stages that do not run."""
        return {*STAGES} - {*self.names}

    @property
    def resources(self) -> list[Resources]:
        """What each actor of the stages that run takes, in their order."""
        return [self.section(name).resources for name in self.names]

    @property
    def requests_of_run(self) -> int | None:
        """The most requests of a stage that all actors may have under way; None: any number."""
        limits = [self.section(name).requests_of_run for name in self.names]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def streamed_requests(self) -> int:
        """How many requests of an actor are under way at once, about images of several units."""
        sections = [self.section(name) for name in self.names]
        return max(
            (section.requests_in_flight for section in sections if section.streams), default=0
        )

    def section(self, stage: str) -> StageConfig:
        """Return the settings of a stage."""
        section: StageConfig = getattr(self, stage)
        return section

    def with_resources(self, stage: str, **amounts: float) -> StagePlan:
        """Return the plan with other resources of a stage."""
        section = self.section(stage)
        resources = section.resources.model_copy(update=amounts)
        return self._with({stage: section.model_copy(update={"resources": resources})})

    @property
    def with_engines(self) -> dict[str, StageConfig]:
        """The sections of the stages that run whose servers the run starts itself."""
        sections = {name: self.section(name) for name in self.names}
        return {name: section for name, section in sections.items() if section.has_engine}

    def with_endpoints(self, endpoints: Mapping[str, Endpoints]) -> StagePlan:
        """Return the plan in which stages ask these servers of engines, which have the GPUs.

        Args:
            endpoints: of each stage.
        """
        sections = {}
        for name, urls in endpoints.items():
            section = self.section(name)
            resources = section.resources.model_copy(update={"gpus": 0})
            asked: Requests = section.requests  # type: ignore[attr-defined]
            requests = asked.model_copy(update={"key": ENGINE_KEY})
            changes = {"endpoint": urls, "resources": resources, "requests": requests}
            sections[name] = section.model_copy(update=changes)
        return self._with(sections)

    def among(self, actors: int) -> StagePlan:
        """Return the plan of one of so many actors that run all stages."""
        return self._with({name: self.section(name).among(actors) for name in self.names})

    def computing_on_cpus(self) -> StagePlan:
        """Return the plan in which stages that have asked for no GPU compute on the CPU."""
        sections = {name: self.section(name) for name in STAGES}
        on_cpus = {
            name: section.model_copy(update={"device": "cpu"})
            for name, section in sections.items()
            if not section.resources.gpus
        }
        return self._with(on_cpus)

    def _with(self, sections: Mapping[str, StageConfig]) -> StagePlan:
        return replace(self, **sections)  # type: ignore[arg-type]
