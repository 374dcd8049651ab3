"""Scorers of relations by other models than the R-Tagger; only what a scorer needs is imported."""

from __future__ import annotations

from sgpipe.files.model_cache import local_model
from sgpipe.stages.endpoint import CacheFolder
from sgpipe.stages.score.scorer import RelationScorer, ScorerSettings


def make_scorer(settings: ScorerSettings, cache: CacheFolder | None = None) -> RelationScorer:
    """Return a scorer, which is not loaded yet; `cache`: where a served one keeps its answers, or None."""
    if settings.kind == "clip":
        from sgpipe.stages.score.clip import ClipScorer

        return ClipScorer(local_model(settings.model), settings.device, settings.gpus)
    from sgpipe.stages.score.vlm import ServedScorer, VlmScorer

    if settings.endpoint is not None:
        return ServedScorer(settings.endpoint, settings.model, settings.requests, cache)
    return VlmScorer(local_model(settings.model), settings.device, settings.dtype, settings.gpus)
