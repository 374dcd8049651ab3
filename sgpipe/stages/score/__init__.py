"""Scorers of relations by other models than the R-Tagger; only what a scorer needs is imported."""

from sgpipe.files.model_cache import local_model
from sgpipe.recipe import TagConfig
from sgpipe.stages.endpoint import CacheFolder
from sgpipe.stages.score.scorer import RelationScorer


def make_scorer(config: TagConfig, cache: CacheFolder | None = None) -> RelationScorer:
    """Return the scorer of a method, not loaded yet; `cache`: where a served one keeps its answers, or None."""
    model, gpus = str(config.tagger), config.resources.gpus or 0
    if config.method == "clip":
        from sgpipe.stages.score.clip import ClipScorer

        return ClipScorer(local_model(model), config.device, gpus)
    from sgpipe.stages.score.vlm import ServedScorer, VlmScorer

    if config.endpoint is not None:
        return ServedScorer(config.endpoint, model, config.requests, cache)
    return VlmScorer(local_model(model), config.device, config.dtype, gpus)
