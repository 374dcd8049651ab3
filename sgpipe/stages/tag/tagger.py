"""The `Tagger` interface: an image and candidates in, confidences out; the packaged taggers that
score an image by itself.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Sequence
from typing import SupportsFloat

from PIL import Image

from sgpipe.errors import UserError
from sgpipe.files.model_cache import local_model
from sgpipe.plugins import built_in_class, failures_told, load_class
from sgpipe.recipe import TagConfig, options_of
from sgpipe.records import Record, Relation, RelationOrigin
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.stages.served.chat import Refusal
from sgpipe.utils.console import count


class Tagger:
    """Confidences of candidates, which depend on the image, its record and the recipe only.

    One of the user's own (`--tagger package.module:Class`) is made with the recipe's `TagConfig`,
    in each process that scores.

    Attributes:
        origin: what the relations state as theirs.
        cache_folder: where the answers of a served model are kept; None: nowhere.
    """

    origin: RelationOrigin = "tagger"
    cache_folder: CacheFolder | None = None

    def __init__(self, config: TagConfig) -> None:
        self.config = config

    def check(self) -> None:
        """Before a run begins, raise UserError if something is missing."""

    def setup(self) -> None:
        """Load models. Called once, in each process that scores."""

    def scores(
        self, image: Image.Image, record: Record, candidates: Sequence[Relation]
    ) -> Sequence[float | Refusal]:
        """Return the confidence of each candidate, from 0 to 1, in their order.

        A `Refusal` of a candidate makes an error row of the image.

        Args:
            image: RGB.
            record: the image's, with its objects and captions.
            candidates: indices into `record.objects`, and a predicate; without a confidence.
        """
        raise NotImplementedError

    def score_images(
        self, images: Iterable[tuple[Image.Image, Record, Sequence[Relation]]]
    ) -> Iterator[Sequence[float | Refusal]]:
        """Yield what `scores` returns for each image, record and candidates, in order."""
        for image, record, candidates in images:
            yield self.scores(image, record, candidates)


class ClipTagger(Tagger):
    """A CLIP model, by texts of a relation and of what else its boxes may show."""

    origin = "clip"

    def check(self) -> None:
        local_model(str(self.config.tagger))

    def setup(self) -> None:
        from sgpipe.stages.score.clip import ClipScorer  # it imports PyTorch

        model = local_model(str(self.config.tagger))
        self.scorer = ClipScorer(model, self.config.device, self.config.resources.gpus or 0)
        self.scorer.load()

    def scores(
        self, image: Image.Image, record: Record, candidates: Sequence[Relation]
    ) -> Sequence[float | Refusal]:
        return self.scorer.scores(image, record.objects, candidates)


class VlmTagger(Tagger):
    """A vision-language model, here or behind an endpoint, that is asked about each relation."""

    origin = "vlm"

    def check(self) -> None:
        from sgpipe.stages.score.scorer import VlmScorer

        VlmScorer(self.config, self.cache_folder).check()

    def setup(self) -> None:
        from sgpipe.stages.score.scorer import VlmScorer

        self.scorer = VlmScorer(self.config, self.cache_folder)
        self.scorer.load()

    def score_images(
        self, images: Iterable[tuple[Image.Image, Record, Sequence[Relation]]]
    ) -> Iterator[Sequence[float | Refusal]]:
        from sgpipe.stages.score.scorer import ScorerInput

        return self.scorer.score_images(
            ScorerInput(image, record.objects, candidates) for image, record, candidates in images
        )


class OwnTagger(Tagger):
    """A tagger that `package.module:Class` names: what it raises names it, and its scores are
    checked.

    Args:
        config: of the recipe, which the class gets.
        reference: the name.
        cache_folder: as of `Tagger`.

    Raises:
        UserError: there is no such class, or it cannot be made.
    """

    def __init__(self, config: TagConfig, reference: str, cache_folder: CacheFolder | None) -> None:
        super().__init__(config)
        self.reference = reference
        tagger_class = load_class("tagger", reference, Tagger)
        with failures_told("tagger", reference):
            self._tagger = tagger_class(config, **options_of(config, "tagger", reference))
        self._tagger.cache_folder = cache_folder
        self.origin = self._tagger.origin

    def check(self) -> None:
        with failures_told("tagger", self.reference):
            self._tagger.check()

    def setup(self) -> None:
        with failures_told("tagger", self.reference):
            self._tagger.setup()

    def scores(
        self, image: Image.Image, record: Record, candidates: Sequence[Relation]
    ) -> Sequence[float | Refusal]:
        with failures_told("tagger", self.reference):
            scores: object = self._tagger.scores(image, record, candidates)
            return self.checked(scores, len(candidates))

    def checked(self, scores: object, candidates: int) -> list[float | Refusal]:
        """Return what the tagger scored.

        Raises:
            UserError: not each candidate has a score from 0 to 1.
        """
        if isinstance(scores, str) or not isinstance(scores, Iterable):
            raise UserError(
                f"tagger {self.reference} returns {reprlib.repr(scores)}:"
                " expected a list with a score from 0 to 1 for each candidate"
            )
        checked = [self._checked_score(score) for score in scores]
        if len(checked) != candidates:
            raise UserError(
                f"tagger {self.reference} returns {count(len(checked), 'score')} for"
                f" {count(candidates, 'candidate')}"
            )
        return checked

    def _checked_score(self, score: object) -> float | Refusal:
        if isinstance(score, Refusal):
            return score
        if isinstance(score, SupportsFloat) and 0 <= float(score) <= 1:
            return float(score)
        raise UserError(
            f"tagger {self.reference} returns the score {reprlib.repr(score)}: expected 0 to 1"
        )


def load_tagger(config: TagConfig, cache_folder: CacheFolder | None = None) -> Tagger:
    """Return the tagger of a recipe, which is not set up yet.

    Raises:
        UserError: there is no such class, or it cannot be made.
    """
    if config.plugin is not None:
        return OwnTagger(config, config.plugin, cache_folder)
    tagger = built_in_class("tagger", config.method, Tagger)(config)
    tagger.cache_folder = cache_folder
    return tagger
