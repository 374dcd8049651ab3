"""The tag stage with a scorer: a CLIP model, or a vision-language model that is asked about every candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from sgpipe.calibration import threshold_of_recipe
from sgpipe.errors import ImageError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.image_feed import ImageFeed
from sgpipe.recipe import PairConfig, TagConfig
from sgpipe.records import Record, Relation, deduplicate
from sgpipe.stages.base import image_threads
from sgpipe.stages.endpoint.cache import CacheFolder
from sgpipe.stages.score.build import make_scorer
from sgpipe.stages.score.scorer import NO_AREA, RelationScorer, ScorerKind, ScorerSettings, Unscored
from sgpipe.stages.tag.methods import candidates, check_tagger
from sgpipe.utils.devices import pick_device
from sgpipe.utils.gpu_memory import gpu_use


class ScoredStage:
    """Keeps the candidates that a scorer finds more probable than the threshold; that is their confidence.

    A candidate with a box that has no area in the image is no relation.
    """

    name = "tag"
    fills = ("relations",)
    threads = 0  # that open images; set up with the scorer

    def __init__(self, config: TagConfig, roots: Mapping[str, ImagePlace], pair: PairConfig | None = None) -> None:
        """
        Args:
            roots: where the images of each split are.
            pair: the configuration of the pair stage.
        """
        self.config, self.roots, self.pair = config, roots, pair or PairConfig()
        self.resources = config.resources
        self.cache_folder: CacheFolder | None = None

    def check(self) -> None:
        """Raises UserError: the model cannot score, or the calibration belongs to other scores."""
        check_tagger(self.config)
        threshold_of_recipe(self.config, self.pair)
        self._scorer().check()

    def _scorer(self) -> RelationScorer:
        config = self.config
        assert config.tagger is not None
        kind: ScorerKind = "clip" if config.method == "clip" else "vlm"
        where = (config.endpoint, config.requests, config.device, config.dtype, config.resources.gpus or 0)
        return make_scorer(ScorerSettings(kind, config.tagger, *where), self.cache_folder)

    def setup(self) -> None:
        """Load the scorer. Raises UserError: as `check`, or its weights are damaged, or the device is missing."""
        check_tagger(self.config)
        self.threshold = threshold_of_recipe(self.config, self.pair)
        torch.set_num_threads(max(1, int(self.resources.cpus)))
        self.scorer = self._scorer()
        if self.config.endpoint is None:
            self.scorer.check()
        self.scorer.load()
        here = self.config.endpoint is None
        self.device = pick_device(self.config.device, self.resources.gpus) if here else None
        self.threads = image_threads(self.resources, elsewhere=self.device != torch.device("cpu"))

    def gpu_use(self) -> dict[str, Any]:
        """See `GpuStage`."""
        return gpu_use(self.device)

    def __call__(self, records: list[Record]) -> list[Record]:
        shown = (record for record in records if record.pairs)
        with ImageFeed(self.roots, shown, lambda image, file: image, self.threads) as images:
            for record in records:
                if record.ok:
                    self._fill(record, images)
        return records

    def _fill(self, record: Record, images: ImageFeed[Image.Image]) -> None:
        record.relations = []
        asked = candidates(record.pairs, None)
        if not asked:
            return
        try:
            image = images.open(record)
        except ImageError as reason:
            record.fail(self.name, str(reason))
            return
        found = self.scorer.scores(image, record.objects, asked)
        failed = [each for each in found if isinstance(each, Unscored) and each is not NO_AREA]
        if failed:
            record.fail(self.name, failed[0].reason)
            return
        scored = [(relation, each) for relation, each in zip(asked, found, strict=True) if isinstance(each, float)]
        record.relations = deduplicate(self._kept(scored))

    def _kept(self, scored: list[tuple[Relation, float]]) -> list[Relation]:
        """The relations above the threshold, in shards' precision, as those of an R-Tagger."""
        confidences = torch.tensor([each for _, each in scored], dtype=torch.float32).tolist()
        return [
            Relation(relation.subject, relation.object, relation.predicate, confidence)
            for (relation, _), confidence in zip(scored, confidences, strict=True)
            if confidence > self.threshold
        ]
