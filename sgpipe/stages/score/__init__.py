"""Scorers of relations by other models than the R-Tagger; only what a scorer needs is imported."""

from sgpipe.files.model_cache import local_model
from sgpipe.recipe import TagConfig
from sgpipe.stages.endpoint import CacheFolder
from sgpipe.stages.score.scorer import RelationScorer


def make_scorer(config: TagConfig, cache: CacheFolder | None = None) -> RelationScorer:
    """Return the scorer of a method, not loaded yet; `cache`: where a served one keeps its answers, or None."""
    if config.method == "clip":
        from sgpipe.stages.score.clip import ClipScorer

        return ClipScorer(local_model(str(config.tagger)), config.device, config.resources.gpus or 0)
    from sgpipe.stages.score.vlm import VlmScorer

    return VlmScorer(config, cache)
