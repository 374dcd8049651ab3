"""`sgpipe score`: a copy of a run with an additional column, the CLIP agreement of each relation.

CLIP agreement is how well a relation, as a text, fits its image: an opinion independent of the tagger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from sgpipe.errors import UserError
from sgpipe.images import ImageError, open_row_image
from sgpipe.records import Box, Record, Relation, from_table
from sgpipe.storage.database import open_run
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.shards import AGREEMENT, embedded_images, read_file, write_copy
from sgpipe.utils.console import Progress, count
from sgpipe.utils.devices import pick_device
from sgpipe.utils.hashing import file_sha256, fingerprint

_BATCH = 256  # texts encoded together


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
    """An open_clip model that scores relations.

    Args:
        model: a name that open_clip knows, or a folder with open_clip_config.json and its weights.
        weights: of a named model: a file, or a tag that open_clip knows.
        predicates: those of the contrast texts.

    Raises UserError: open_clip is not installed, or the model cannot be loaded.
    """

    def __init__(self, model: str, weights: str | None, predicates: Sequence[str], device: str = "auto") -> None:
        self._device = pick_device(device)
        self._model, self._preprocess, self._tokenize = _load(model, weights, self._device)
        self._predicates = list(predicates)
        self._texts: dict[str, Tensor] = {}

    @torch.inference_mode()
    def __call__(self, record: Record, image: Image.Image) -> list[Agreement | None]:
        """The agreement of each relation of the record, in its order; None where a box has no area in the image."""
        crops = {(r.subject, r.object): _union(image, record.objects, r) for r in record.relations}
        present = {pair: crop for pair, crop in crops.items() if crop is not None}
        if not present:
            return [None] * len(record.relations)
        texts = [self._relation_texts(record, relation) for relation in record.relations]
        self._encode({text for own in texts for text in own})
        images = torch.stack([self._preprocess(crop) for crop in present.values()]).to(self._device)
        features = dict(zip(present, self._model.encode_image(images, normalize=True).float().cpu(), strict=True))
        pairs = [(relation.subject, relation.object) for relation in record.relations]
        return [
            self._agreement(features[pair], own, _is_directed(record, relation)) if pair in features else None
            for pair, own, relation in zip(pairs, texts, record.relations, strict=True)
        ]

    def _relation_texts(self, record: Record, relation: Relation) -> list[str]:
        """The text of a relation, the same with swapped roles if that differs, and those with other predicates."""
        subject, object_ = record.objects[relation.subject], record.objects[relation.object]
        ends = (relation.subject, relation.object)
        same_pair = {r.predicate for r in record.relations if (r.subject, r.object) == ends}
        others = [predicate for predicate in self._predicates if predicate not in same_pair]
        relation_texts = [_text(subject, relation.predicate, object_)]
        if _is_directed(record, relation):
            relation_texts.append(_text(object_, relation.predicate, subject))
        return relation_texts + [_text(subject, predicate, object_) for predicate in others]

    def _agreement(self, image: Tensor, texts: list[str], directed: bool) -> Agreement:
        scores = torch.stack([self._texts[text] for text in texts]) @ image
        rank = 1 + int((scores[1:] > scores[0]).sum())
        return Agreement(float(scores[0]), float(scores[1]) if directed else None, rank, len(texts) - 1)

    def _encode(self, texts: set[str]) -> None:
        new = sorted(texts - self._texts.keys())
        for start in range(0, len(new), _BATCH):
            part = new[start : start + _BATCH]
            features = self._model.encode_text(self._tokenize(part).to(self._device), normalize=True).float().cpu()
            self._texts.update(zip(part, features, strict=True))


def _load(model: str, weights: str | None, device: torch.device) -> tuple[Any, Any, Any]:
    try:
        import open_clip
    except ImportError:
        raise UserError("scoring needs open_clip: pip install 'sgpipe[clip]'") from None
    if Path(model).is_dir():
        model = f"local-dir:{model}"
    elif weights is None and not model.startswith("hf-hub:"):
        raise UserError(f"--model {model}: give its --weights, or a folder with open_clip_config.json")
    try:
        network, _, preprocess = open_clip.create_model_and_transforms(model, pretrained=weights, device=device)
        return network.eval(), preprocess, open_clip.get_tokenizer(model)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise UserError(f"CLIP model {model} cannot be loaded ({str(error).splitlines()[0]})") from None


def _is_directed(record: Record, relation: Relation) -> bool:
    """Whether swapping subject and object changes the text."""
    subject, object_ = record.objects[relation.subject], record.objects[relation.object]
    return not object_.is_nothing and subject.category != object_.category


def _text(subject: Box, predicate: str, object_: Box) -> str:
    last = "" if object_.is_nothing else f" {_article(object_.category)}"
    return f"{_article(subject.category)} {predicate}{last}"


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _union(image: Image.Image, objects: Sequence[Box], relation: Relation) -> Image.Image | None:
    """The smallest crop with both boxes; None if it has no pixels."""
    boxes = [objects[end].bbox for end in (relation.subject, relation.object) if not objects[end].is_nothing]
    left, top = (int(min(box[axis] for box in boxes)) for axis in (0, 1))
    right, bottom = (round(max(box[axis] + box[axis + 2] for box in boxes)) for axis in (0, 1))
    corners = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    if corners[2] - corners[0] < 1 or corners[3] - corners[1] < 1:
        return None
    return image.crop(corners)


TYPE = pa.list_(
    pa.struct({"score": pa.float32(), "swapped": pa.float32(), "rank": pa.int32(), "contrasts": pa.int32()})
)
Scorer = Callable[[Record, Image.Image], list[Agreement | None]]


def score_run(
    root: Path,
    out: Path,
    make_scorer: Callable[[], Scorer],
    identity: dict[str, Any],
    progress: Progress,
    images: Path | None = None,
) -> dict[str, int]:
    """Copy the shards of a run to `out` with scores; an earlier call that stopped is resumed.

    Args:
        make_scorer: called once, if there is anything to score.
        identity: everything that decides the scores; a folder with another identity is refused.
        images: the image folder, if the images moved.

    Returns:
        the number of relations that were scored, and of those that could not be.

    Raises UserError: a folder is not a run or another one, a shard cannot be read, or another process writes to `out`.
    """
    source, folder = Manifest.load(root), RunFolder(out)
    scorer, counts = None, {"scored": 0, "unscored": 0}
    with folder.lock():
        manifest = _open(source, folder, identity)
        done = {shard.file for shard in manifest.shards}  # the name of a shard that was processed again is another one
        folder.sweep(manifest)
        with progress.images(None, "scoring") as advance:
            for shard in source.shards:
                if shard.file in done:
                    _add_earlier(out / shard.file, counts)
                    continue
                scorer = scorer or make_scorer()
                table = _scored(source, root / shard.file, scorer, images, counts)
                manifest.commit(write_copy(out, shard, table))
                advance(shard.rows, shard.counts)
        if scorer is None:
            there = count(sum(shard.rows for shard in manifest.shards), "image")
            progress.say(f"nothing left to do: the relations of {there} in {out} have been scored")
        folder.sweep(manifest)
        folder.write_readme(f"{source.run.get('name', '')}: scored by sgpipe", "Scores are CLIP's.", manifest)
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
    images = {split: str(folder) for split, folder in source.image_folders.items()}
    origin = {"origin": Manifest.identities(source.run), "source_images": RunFolder(source.root).source_images}
    return folder.open({**source.run, **origin, "images": images, "identity": parts})


def _add_earlier(file: Path, counts: dict[str, int]) -> None:
    """Add the relations of a shard that an earlier call scored."""
    agreements = pc.list_flatten(read_file(file, [AGREEMENT])[AGREEMENT])
    counts["scored"] += len(agreements) - agreements.null_count
    counts["unscored"] += agreements.null_count


def _scored(source: Manifest, file: Path, scorer: Scorer, images: Path | None, counts: dict[str, int]) -> pa.Table:
    table = read_file(file)
    column = []
    for record, embedded in zip(from_table(table), embedded_images(table), strict=True):
        agreements = _agreements(source, record, embedded, scorer, images)
        counts["unscored"] += agreements.count(None)
        counts["scored"] += len(agreements) - agreements.count(None)
        column.append([agreement and asdict(agreement) for agreement in agreements])
    metadata = table.schema.metadata
    return table.append_column(AGREEMENT, pa.array(column, TYPE)).replace_schema_metadata(metadata)


def _agreements(
    source: Manifest, record: Record, embedded: bytes | None, scorer: Scorer, images: Path | None
) -> list[Agreement | None]:
    """The agreement of each relation; None for all of them if the image cannot be opened."""
    if record.ok and record.relations:
        try:
            return scorer(record, open_row_image(source.image_folders, record, embedded, images))
        except ImageError:
            pass
    return [None] * len(record.relations)
