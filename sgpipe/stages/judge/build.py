"""Build a judge from its settings, and import its module only then: that of another may need what is not installed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sgpipe.files.model_cache import local_model
from sgpipe.recipe import Requests
from sgpipe.stages.endpoint.cache import CacheFolder
from sgpipe.stages.judge.judge import Judge

JudgeKind = Literal["clip", "vlm"]


@dataclass(frozen=True)
class JudgeSettings:
    """Which judge, and where it computes; `gpus`: how many were asked for, if any, "auto" is a GPU."""

    kind: JudgeKind
    model: str
    endpoint: str | None = None
    requests: Requests = field(default_factory=Requests)
    device: str = "auto"
    dtype: str = "auto"
    gpus: float = 0


def make_judge(settings: JudgeSettings, cache: CacheFolder | None = None) -> Judge:
    """A judge, which is not loaded yet; `cache`: the folder in which a served one keeps its answers."""
    if settings.kind == "clip":
        from sgpipe.stages.judge.clip import ClipJudge

        return ClipJudge(local_model(settings.model), settings.device, settings.gpus)
    if settings.endpoint is not None:
        from sgpipe.stages.judge.served import ServedJudge

        return ServedJudge(settings.endpoint, settings.model, settings.requests, cache)
    from sgpipe.stages.judge.vlm import VlmJudge

    return VlmJudge(local_model(settings.model), settings.device, settings.dtype, settings.gpus)
