"""`sgpipe score --by vlm`: how probable a vision-language model finds each relation, which it is asked about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from sgpipe.generation.scoring import ScoreColumn, Scorer
from sgpipe.records import Record
from sgpipe.stages.endpoint.cache import CacheFolder
from sgpipe.stages.score.build import make_scorer
from sgpipe.stages.score.scorer import ScorerSettings
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.shards import OPINION
from sgpipe.utils.devices import pick_device, pick_dtype
from sgpipe.utils.hashing import model_sha256

OPINION_COLUMN: ScoreColumn[float] = ScoreColumn(OPINION, pa.float32(), float, "a second opinion")


def opinion_identity(settings: ScorerSettings) -> dict[str, Any]:
    """What decides the opinion: not where a server is, but what it serves."""
    if settings.endpoint is not None:
        return {"by": settings.kind, "model": settings.model, "served": True}
    dtype = str(pick_dtype(settings.dtype, pick_device(settings.device, settings.gpus))).removeprefix("torch.")
    return {"by": settings.kind, "model": model_sha256(settings.model), "dtype": dtype}


def opinion_scorer(settings: ScorerSettings, out: Path) -> Callable[[], Scorer[float]]:
    """Makes the scorer; `out`: the scored copy, which keeps the answers of a server.

    What it makes raises UserError: the scorer cannot be used.
    """

    def make() -> Scorer[float]:
        scorer = make_scorer(settings, CacheFolder(RunFolder(out).private))
        scorer.check()
        scorer.load()

        def score(record: Record, image: Image.Image) -> Sequence[float | None]:
            found = scorer.scores(image, record.objects, record.relations)
            return [each if isinstance(each, float) else None for each in found]

        return score

    return make
