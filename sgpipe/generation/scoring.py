"""`sgpipe score`: a copy of a run with an additional column, a score of each relation.

CLIP's score is how well a relation, as a text, fits its image; a vision-language model's how
probable it finds it.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.locations import Location
from sgpipe.images import ImageError, open_row_image
from sgpipe.recipe import SENT_AS, TagConfig
from sgpipe.records import Box, Record, Relation, from_table
from sgpipe.stages.score.clip import ClipModel
from sgpipe.stages.score.scorer import Score, VlmScorer, is_directed, relation_text
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.stages.served.chat import Refusal
from sgpipe.stages.served.engines.local import LOGS, LocalReplicas
from sgpipe.storage.header import Identity, RunHeader
from sgpipe.storage.manifest import Manifest, ShardEntry
from sgpipe.storage.run_folder import RunFolder, copy_run
from sgpipe.storage.shards import CLIP_SCORE, SCORES, VLM_SCORE, embedded_images, read_file
from sgpipe.utils.boxes import xywh_to_xyxy
from sgpipe.utils.console import Progress
from sgpipe.utils.devices import pick_device, pick_dtype
from sgpipe.utils.hashing import model_sha256

_CROPS = 64  # of one image, encoded together
_WHAT = {CLIP_SCORE: "CLIP's score", VLM_SCORE: "the score of a vision-language model"}


class ClipScore(NamedTuple):
    """How well a relation fits its image.

    Attributes:
        score: cosine similarity of the crop of both boxes and "a SUBJECT PREDICATE OBJECT".
        swapped: the same with subject and object swapped; None if that is the same text.
        rank: 1 plus the number of `contrasts` that fit better: the swapped text, and those with
            other predicates.
    """

    score: float
    swapped: float | None
    rank: int
    contrasts: int


class RelationRanker:
    """A CLIP model, with the predicates of contrast texts. Raises UserError: as `ClipModel`, or it
    has no weights.
    """

    def __init__(
        self, model: str, weights: str | None, predicates: Sequence[str], device: str = "auto"
    ) -> None:
        if weights is None and not Path(model).is_dir() and ":" not in model and "/" not in model:
            raise UserError(
                f"--model {model}: pass its --weights, or a folder or hub id of a CLIP model"
            )
        self._clip = ClipModel(model, weights, pick_device(device))
        self._predicates = list(predicates)

    @torch.inference_mode()
    def __call__(self, record: Record, image: Image.Image) -> list[ClipScore | None]:
        """Return the score of each relation of the record, in its order; None where a box has no
        area in the image.
        """
        pairs = [(relation.subject, relation.object) for relation in record.relations]
        pairs = list(dict.fromkeys(pairs))
        features: dict[tuple[int, int], Tensor] = {}
        for at in range(0, len(pairs), _CROPS):
            crops = {
                pair: _union(image, [record.objects[end] for end in pair])
                for pair in pairs[at : at + _CROPS]
            }
            present = {pair: crop for pair, crop in crops.items() if crop is not None}
            if present:
                features |= zip(
                    present, self._clip.embed_images(list(present.values())), strict=True
                )
        return [
            self._score(record, relation, features.get((relation.subject, relation.object)))
            for relation in record.relations
        ]

    def _score(self, record: Record, relation: Relation, image: Tensor | None) -> ClipScore | None:
        if image is None:
            return None
        ends = relation.subject, relation.object
        subject, object_ = (record.objects[end] for end in ends)
        stated = {
            relation.predicate
            for relation in record.relations
            if (relation.subject, relation.object) == ends
        }
        texts = [relation_text(subject, relation.predicate, object_)]
        directed = is_directed(subject, object_)
        if directed:
            texts.append(relation_text(object_, relation.predicate, subject))
        texts += [
            relation_text(subject, predicate, object_)
            for predicate in self._predicates
            if predicate not in stated
        ]
        scores = self._clip.embed_texts(texts) @ image
        rank = 1 + int((scores[1:] > scores[0]).sum())
        return ClipScore(
            float(scores[0]), float(scores[1]) if directed else None, rank, len(texts) - 1
        )


def _union(image: Image.Image, objects: Sequence[Box]) -> Image.Image | None:
    """Return the smallest crop with both boxes; None if it has no pixels."""
    boxes = np.array([box.bbox for box in objects if not box.is_nothing])
    corners = xywh_to_xyxy(boxes)
    left, top = corners[:, :2].min(0).tolist()
    right, bottom = corners[:, 2:].max(0).tolist()
    left = max(int(left), 0)
    top = max(int(top), 0)
    right = min(round(right), image.width)
    bottom = min(round(bottom), image.height)
    if right - left < 1 or bottom - top < 1:
        return None
    return image.crop((left, top, right, bottom))


Scorer = Callable[[Record, Image.Image], Sequence[ClipScore | Score | None]]


def score_run(
    root: Location,
    out: Path,
    column: str,
    make_scorer: Callable[[], Scorer],
    identity: Identity,
    progress: Progress,
    images: ImagePlace | None = None,
) -> dict[str, int]:
    """Copy the shards of a run to `out` with scores; an earlier call that stopped is resumed.

    `make_scorer` is called once, if there is anything to score; `identity` decides the scores.

    Args:
        column: of `SCORES`.

    Returns:
        The number of relations that were `scored`, and of those that could not be.

    Raises:
        UserError: a folder is not a run or another one, a shard is damaged, or the run already has
            the column.
    """
    source = Manifest.load(root)
    scorer = None
    counts = {"scored": 0, "unscored": 0}
    if source.shards and column in read_file(root / source.shards[0].file).column_names:
        raise UserError(
            f"{root} already has {_WHAT[column]} (column {column}): score the run that it was made"
            " from"
        )

    def scored(shard: ShardEntry, is_done: bool) -> pa.Table:
        nonlocal scorer
        if is_done:
            table = read_file(out / shard.file, [column])
        else:
            scorer = scorer or make_scorer()
            table = _scored(source, read_file(root / shard.file), column, scorer, images)
        scores = pc.list_flatten(table[column])
        counts["scored"] += len(scores) - scores.null_count
        counts["unscored"] += scores.null_count
        return table

    parts = {"scored": source.run.get("fingerprint"), **identity}
    header: RunHeader = {"images": dict(source.image_roots.locations), "identity": parts}
    readme = (
        f"{source.run.get('name', '')}: scored by sgpipe",
        f"Column `{column}`: {_WHAT[column]}.",
    )
    copy_run(source, out, header, scored, "scoring", readme, progress)
    return counts


def _scored(
    source: Manifest, table: pa.Table, column: str, scorer: Scorer, images: ImagePlace | None
) -> pa.Table:
    """Return the table with the column: None for the relations of an image that cannot be opened,
    too.
    """
    lists: list[Sequence[ClipScore | float | None]] = []
    for record, embedded in zip(from_table(table), embedded_images(table), strict=True):
        lists.append([None] * len(record.relations))
        if record.ok and record.relations:
            with suppress(ImageError):
                image = open_row_image(source.image_roots, record, embedded, images)
                scores = scorer(record, image)
                lists[-1] = [None if isinstance(score, Refusal) else score for score in scores]
    added = table.append_column(column, pa.array(lists, pa.list_(SCORES[column])))
    return added.replace_schema_metadata(table.schema.metadata)


def vlm_identity(config: TagConfig) -> Identity:
    """Return what decides the scores: not where a server is, but what it serves."""
    identity: dict[str, object] = {"by": config.method}
    if config.is_served:
        identity |= {"model": config.tagger, "served": True, "images": SENT_AS}
    else:
        dtype = str(pick_dtype(config.dtype, pick_device(config.device))).removeprefix("torch.")
        identity |= {"model": model_sha256(config.tagger), "dtype": dtype}
    if config.questions == "shared":
        identity["questions"] = config.questions
    return identity


def vlm_scorer(
    config: TagConfig, out: Path, say: Callable[[str], None], running: ExitStack
) -> Scorer:
    """Return the scorer, or raises UserError.

    Args:
        out: the scored copy, which keeps answers of a server.
        say: gets lines about the servers of an engine.
        running: ends these servers.
    """
    private = RunFolder(out).private
    if config.has_engine:
        replicas = LocalReplicas({"tag": config}, private / LOGS, say)
        running.callback(replicas.close)
        config = config.model_copy(update={"endpoint": replicas.start()["tag"]})
    scorer = VlmScorer(config, CacheFolder(private))
    scorer.check()
    scorer.load()
    return lambda record, image: scorer.scores(image, record.objects, record.relations)
