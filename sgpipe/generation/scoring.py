"""`sgpipe score`: a copy of a run with an additional column, a score of each relation.

CLIP agreement is how well a relation, as a text, fits its image: an opinion independent of the tagger. Another score
is how probable a vision-language model finds each relation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.images import ImageError, open_row_image
from sgpipe.records import Box, Record, Relation, from_table
from sgpipe.stages.endpoint import CacheFolder
from sgpipe.stages.score.build import make_scorer
from sgpipe.stages.score.clip import ClipModel, TextEmbeddings, load_clip
from sgpipe.stages.score.scorer import ScorerSettings, is_directed, relation_text
from sgpipe.storage.index import open_run
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import RunFolder, source_images
from sgpipe.storage.shards import AGREEMENT, OPINION, embedded_images, read_file, write_copy
from sgpipe.utils.console import Progress, count
from sgpipe.utils.devices import pick_device, pick_dtype
from sgpipe.utils.hashing import file_sha256, fingerprint, model_sha256

_CROPS = 64  # of one image, encoded together


@dataclass(frozen=True)
class Agreement:
    """How well a relation fits its image.

    Attributes:
        score: cosine similarity of the crop of both boxes and "a SUBJECT PREDICATE OBJECT".
        swapped: the same with subject and object swapped; None if that is the same text.
        rank: 1 plus the number of contrast texts that fit better: the swapped one, and those with other predicates.
        contrasts: the number of contrast texts.
    """

    score: float
    swapped: float | None
    rank: int
    contrasts: int


class ClipAgreement:
    """A CLIP model that scores relations.

    Args:
        model, weights: see `load_clip`.
        predicates: those of the contrast texts.

    Raises UserError: as `load_clip`, or a named model has no weights.
    """

    def __init__(self, model: str, weights: str | None, predicates: Sequence[str], device: str = "auto") -> None:
        self._clip = _load(model, weights, device)
        self._predicates = list(predicates)
        self._embed = TextEmbeddings(self._clip)

    @torch.inference_mode()
    def __call__(self, record: Record, image: Image.Image) -> list[Agreement | None]:
        """The agreement of each relation of the record, in its order; None where a box has no area in the image."""
        features = self._crop_features(record, image)
        if not features:
            return [None] * len(record.relations)
        texts = [self._relation_texts(record, relation) for relation in record.relations]
        pairs = [(relation.subject, relation.object) for relation in record.relations]
        return [
            self._agreement(features[pair], own, _is_directed(record, relation)) if pair in features else None
            for pair, own, relation in zip(pairs, texts, record.relations, strict=True)
        ]

    def _crop_features(self, record: Record, image: Image.Image) -> dict[tuple[int, int], Tensor]:
        """The embedding of the crop of each related pair, without those that have no pixels; a few crops at a time."""
        pairs = iter({(relation.subject, relation.object): relation for relation in record.relations}.items())
        features: dict[tuple[int, int], Tensor] = {}
        while part := list(islice(pairs, _CROPS)):
            crops = {pair: _union(image, record.objects, relation) for pair, relation in part}
            present = {pair: crop for pair, crop in crops.items() if crop is not None}
            if present:
                features |= zip(present, self._clip.embed_images(list(present.values())), strict=True)
        return features

    def _relation_texts(self, record: Record, relation: Relation) -> list[str]:
        """The text of a relation, the same with swapped roles if that differs, and those with other predicates."""
        subject, object_ = record.objects[relation.subject], record.objects[relation.object]
        ends = (relation.subject, relation.object)
        same_pair = {r.predicate for r in record.relations if (r.subject, r.object) == ends}
        others = [predicate for predicate in self._predicates if predicate not in same_pair]
        relation_texts = [relation_text(subject, relation.predicate, object_)]
        if is_directed(subject, object_):
            relation_texts.append(relation_text(object_, relation.predicate, subject))
        return relation_texts + [relation_text(subject, predicate, object_) for predicate in others]

    def _agreement(self, image: Tensor, texts: list[str], directed: bool) -> Agreement:
        scores = self._embed(texts) @ image
        rank = 1 + int((scores[1:] > scores[0]).sum())
        return Agreement(float(scores[0]), float(scores[1]) if directed else None, rank, len(texts) - 1)


def _load(model: str, weights: str | None, device: str) -> ClipModel:
    if weights is None and not Path(model).is_dir() and ":" not in model and "/" not in model:
        raise UserError(f"--model {model}: pass its --weights, or a folder or hub id of a CLIP model")
    return load_clip(model, weights, pick_device(device))


def _is_directed(record: Record, relation: Relation) -> bool:
    return is_directed(record.objects[relation.subject], record.objects[relation.object])


def _union(image: Image.Image, objects: Sequence[Box], relation: Relation) -> Image.Image | None:
    """The smallest crop with both boxes; None if it has no pixels."""
    boxes = [objects[end].bbox for end in (relation.subject, relation.object) if not objects[end].is_nothing]
    left, top = (int(min(box[axis] for box in boxes)) for axis in (0, 1))
    right, bottom = (round(max(box[axis] + box[axis + 2] for box in boxes)) for axis in (0, 1))
    corners = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    if corners[2] - corners[0] < 1 or corners[3] - corners[1] < 1:
        return None
    return image.crop(corners)


Score = TypeVar("Score")
Scorer = Callable[[Record, Image.Image], Sequence[Score | None]]


@dataclass(frozen=True)
class ScoreColumn(Generic[Score]):
    """A column that scoring adds: a list with an entry for each relation.

    Attributes:
        entry: the type of an entry. stored: an entry as Arrow takes it.
        what: what it is, for messages and the README of the copy.
    """

    name: str
    entry: pa.DataType
    stored: Callable[[Score], Any]
    what: str


AGREEMENT_COLUMN: ScoreColumn[Agreement] = ScoreColumn(
    AGREEMENT,
    pa.struct({"score": pa.float32(), "swapped": pa.float32(), "rank": pa.int32(), "contrasts": pa.int32()}),
    asdict,
    "CLIP's agreement",
)


def score_run(
    root: Path,
    out: Path,
    column: ScoreColumn[Score],
    make_scorer: Callable[[], Scorer[Score]],
    identity: dict[str, Any],
    progress: Progress,
    images: ImagePlace | None = None,
) -> dict[str, int]:
    """Copy the shards of a run to `out` with scores; an earlier call that stopped is resumed.

    Args:
        column: what is added; columns of other scores stay.
        make_scorer: called once, if there is anything to score.
        identity: everything that decides the scores; a folder with another identity is refused.
        images: where the images are, if they moved.

    Returns:
        the number of relations that were scored, and of those that could not be.

    Raises UserError: a folder is not a run or another one, a shard cannot be read, the run already has the column, or
        another process writes to `out`.
    """
    source, folder = Manifest.load(root), RunFolder(out)
    scorer, counts = None, {"scored": 0, "unscored": 0}
    if source.shards and column.name in read_file(root / source.shards[0].file).column_names:
        raise UserError(f"{root} already has {column.what} (column {column.name}): score the run that it was made from")
    with folder.lock():
        manifest = _open(source, folder, identity)
        manifest.drop_outdated(source)
        done = {shard.file for shard in manifest.shards}  # the name of a shard that was processed again is another one
        folder.sweep(manifest)
        with progress.images(None, "scoring") as advance:
            for shard in source.shards:
                if shard.file in done:
                    _add_earlier(out / shard.file, column.name, counts)
                    continue
                table = read_file(root / shard.file)
                scorer = scorer or make_scorer()
                manifest.commit(write_copy(out, shard, _scored(source, table, column, scorer, images, counts)))
                advance(shard.rows, shard.counts)
        if scorer is None:
            there = count(sum(shard.rows for shard in manifest.shards), "image")
            progress.say(f"nothing left to do: the relations of {there} in {out} have been scored")
        folder.sweep(manifest)
        title = f"{source.run.get('name', '')}: scored by sgpipe"
        folder.write_readme(title, f"Column `{column.name}`: {column.what}.", manifest)
    return counts


def frequent_predicates(root: Path, count: int) -> list[str]:
    """The most frequent predicates of a run, for contrast texts.

    Raises UserError: it is not a run, or a shard cannot be read.
    """
    with open_run(root) as database:
        rows = database.rows("select predicate from predicates order by relations desc, predicate limit ?", count)
    return [predicate for (predicate,) in rows]


def model_identity(name: str | None) -> str | None:
    """A name unchanged; a file or folder as the hash of its content."""
    path = Path(name or "")
    if name is None or not path.exists():
        return name
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    return "sha256:" + fingerprint({file.name: file_sha256(file) for file in files})


def _open(source: Manifest, folder: RunFolder, identity: dict[str, Any]) -> Manifest:
    parts = {"scored": source.run.get("fingerprint"), **identity}
    run = {name: value for name, value in source.run.items() if name != "store"}
    images = dict(source.image_roots.locations)
    origin = {"origin": Manifest.identities(source.run), "source_images": source_images(source.root)}
    return folder.open({**run, **origin, "images": images, "identity": parts})


def _add_earlier(file: Path, column: str, counts: dict[str, int]) -> None:
    """Add the relations of a shard that an earlier call scored."""
    scores = pc.list_flatten(read_file(file, [column])[column])
    counts["scored"] += len(scores) - scores.null_count
    counts["unscored"] += scores.null_count


def _scored(
    source: Manifest,
    table: pa.Table,
    column: ScoreColumn[Score],
    scorer: Scorer[Score],
    images: ImagePlace | None,
    counts: dict[str, int],
) -> pa.Table:
    lists = []
    for record, embedded in zip(from_table(table), embedded_images(table), strict=True):
        scores = _scores(source, record, embedded, scorer, images)
        missing = sum(score is None for score in scores)
        counts["unscored"] += missing
        counts["scored"] += len(scores) - missing
        lists.append([None if score is None else column.stored(score) for score in scores])
    metadata = table.schema.metadata
    added = table.append_column(column.name, pa.array(lists, pa.list_(column.entry)))
    return added.replace_schema_metadata(metadata)


def _scores(
    source: Manifest, record: Record, embedded: bytes | None, scorer: Scorer[Score], images: ImagePlace | None
) -> Sequence[Score | None]:
    """The score of each relation; None for all of them if the image cannot be opened."""
    if record.ok and record.relations:
        try:
            return scorer(record, open_row_image(source.image_roots, record, embedded, images))
        except ImageError:
            pass
    return [None] * len(record.relations)


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
