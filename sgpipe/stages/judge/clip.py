"""A CLIP model as a judge: compares the crop of both boxes, outlined, with the relation and with contrast texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from PIL import Image
from torch import Tensor

from sgpipe.errors import UserError
from sgpipe.records import Box, Relation
from sgpipe.stages.judge.clip_model import ClipModel, TextEmbeddings, check_clip, load_clip
from sgpipe.stages.judge.judge import NO_AREA, Unjudged
from sgpipe.stages.judge.marks import marked_crop
from sgpipe.stages.judge.texts import contrast_texts, relation_text
from sgpipe.utils.devices import pick_device


class ClipJudge:
    """The probability of a relation's text among that text and its contrast texts; see `contrast_texts`.

    It is a softmax over cosines, scaled as the checkpoint was trained. The other relations of a pair are no contrasts,
    as several may hold, so that the probability of a relation does not depend on what else is asked.
    """

    def __init__(self, model: str, device: str = "auto", gpus: float = 0) -> None:
        """
        Args:
            model: see `load_clip`; "NAME:WEIGHTS" for a named model of open_clip.
            gpus: how many GPUs were asked for.
        """
        self.model, self._device_name, self._gpus = model, device, gpus

    def check(self) -> None:
        """Raises UserError: there is no such model, or it is another kind of model."""
        name, weights = split_name(self.model)
        check_clip(name, weights)

    def load(self) -> None:
        """Raises UserError: the model cannot be loaded, or the device is missing."""
        name, weights = split_name(self.model)
        self.clip: ClipModel = load_clip(name, weights, pick_device(self._device_name, self._gpus))
        self._embed = TextEmbeddings(self.clip)

    def probabilities(
        self, image: Image.Image, objects: Sequence[Box], relations: Sequence[Relation]
    ) -> list[float | Unjudged]:
        """See `Judge`."""
        found: list[float | Unjudged] = [NO_AREA] * len(relations)
        for numbers in _by_pair(relations):
            crop = marked_crop(image, objects, relations[numbers[0]], self.clip.side)
            if crop is not None:
                seen = self.clip.embed_images([crop])[0]
                for number in numbers:
                    found[number] = self.probability(seen, objects, relations[number])
        return found

    def probability(self, seen: Tensor, objects: Sequence[Box], relation: Relation) -> float:
        """How probable a relation is; `seen`: the embedding of its crop. Raises UserError: it is NaN."""
        subject, object_ = objects[relation.subject], objects[relation.object]
        texts = [relation_text(subject, relation.predicate, object_), *contrast_texts(objects, relation)]
        share = float((self.clip.scale * (self._embed(texts) @ seen).double()).softmax(0)[0])
        if share != share:
            raise UserError(f"CLIP model {self.model} returns NaN: its weights are damaged")
        return share


def split_name(model: str) -> tuple[str, str | None]:
    """The name and the weights of "NAME:WEIGHTS"; a folder or a hub id has no weights."""
    name, found, weights = model.partition(":")
    return (name, weights) if found and name != "hf-hub" and "/" not in name else (model, None)


def _by_pair(relations: Iterable[Relation]) -> Iterable[list[int]]:
    """The numbers of the relations of each pair."""
    pairs: dict[tuple[int, int], list[int]] = {}
    for number, relation in enumerate(relations):
        pairs.setdefault((relation.subject, relation.object), []).append(number)
    return pairs.values()
