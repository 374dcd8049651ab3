"""The images of shards whose relations a network predicts, its predictions, and the files that
these are written to.

Predictions are written as JSON, in the forms that the evaluators of benchmarks read, or as Parquet,
with names.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlip_model.evaluation.inputs import NOT_PREDICTED, Array, PredictedPairs
from rlip_model.evaluation.triplets import largest
from rlip_model.evaluation.vcoco import Actions, PredictedPeople, Role
from rlip_model.evaluation.vcoco_files import AGENT
from rlip_model.evaluation.visual_genome import PredictedGraph
from sgpipe import records
from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.locations import Location, opened_ahead
from sgpipe.records import NO_OBJECT, Record, from_table
from sgpipe.sources.annotated import DatasetClasses
from sgpipe.sources.hoi import HICO, HoiaSchema
from sgpipe.sources.vocabulary import official_relation_names
from sgpipe.storage.datasets import load_manifest
from sgpipe.storage.run_folder import write_result
from sgpipe.storage.shards import IMAGE_COLUMN, embedded_images, open_shard, read_row_group

PERSON = "person"
Task = Literal["hoi", "zero-shot hoi", "scene graph"]
_NAMES = ("image_id", "dataset", "split", "file_name", "width", "height")
_COLUMNS = (*_NAMES, "status", "error")
Item: TypeAlias = dict[str, object]  # of a JSON list
Items: TypeAlias = "Callable[[ImagePrediction, PredictedPairs], list[Item]]"
CLASSES = "classes"  # key of the class list in the first item of a file

_TRIPLET = {
    "pair": pa.int32(),
    "subject": pa.string(),
    "predicate": pa.string(),
    "object": pa.string(),
    "score": pa.float32(),
    "subject_box": pa.list_(pa.float32()),
    "object_box": pa.list_(pa.float32()),
}
_ROWS_PER_WRITE = 512
SCHEMA = pa.schema(
    [
        *(records.SCHEMA.field(name) for name in _NAMES),
        pa.field("triplets", records.list_of(**_TRIPLET)),
        pa.field("error", pa.string()),
    ],
    metadata={"sgpipe.predictions": "1"},
)


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How a network runs."""

    batch: int = 4  # images
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"  # or cpu (whatever `gpus` says), cuda, or cuda:N for a single process
    # shorter and longer one of images, in pixels; None: as in training
    sides: tuple[int, int] | None = None
    threads: int = 2  # that read images
    workers: int = 1  # processes; more than one run on Ray
    # per process, at most 1; 0: a single process takes a GPU if there is one, several do not
    gpus: float = 0


@dataclass(frozen=True)
class PredictConfig(InferenceConfig):
    """What to predict, and how: with queries for these `classes`.

    `task` "hoi": subjects are persons; "zero-shot hoi": pairs whose subject is classified as
    something else are left out; "scene graph": subjects of any class.
    """

    model: Location
    classes: DatasetClasses
    task: Task


@dataclass(frozen=True)
class RowGroup:
    """The row group number `group` of a shard, with `rows` images; where these are, if not in the
    shard.
    """

    file: Location
    group: int
    images: ImagePlace | None
    rows: int


@dataclass(frozen=True)
class ImagePrediction:
    """The prediction for one image: boxes in pixels, labels and predicates as indices into the
    classes; or an error.
    """

    row: Record
    pairs: PredictedPairs | None = None
    error: str | None = None


def coco_image_id(row: Record) -> int:
    """Return the image id as COCO's integer.

    Raises:
        UserError: it is not an integer.
    """
    try:
        return int(row.image_id)
    except ValueError:
        raise UserError(
            f"image id {row.image_id!r} is not an integer; V-COCO needs COCO's image ids"
        ) from None


def list_row_groups(
    root: Location, split: str | None = None, images: ImagePlace | None = None
) -> list[RowGroup]:
    """Return the row groups of a folder of shards, by split and position; `images`: where they are,
    if they moved.

    Raises:
        UserError: the folder is not a run or has no such split, a shard is damaged, or there is no
            image folder.
    """
    manifest = load_manifest(root)
    row_groups: list[RowGroup] = []
    shards = [shard for shard in manifest.shards if split in (None, shard.split)]
    with closing(opened_ahead([manifest.location_of(shard.file) for shard in shards])) as contents:
        for shard, content in zip(shards, contents, strict=True):
            path = manifest.location_of(shard.file)
            with open_shard(path, _COLUMNS, content) as file:
                has_images = IMAGE_COLUMN in file.schema_arrow.names
                metadata = file.metadata
            folder = None if has_images else manifest.image_root(shard.split, images)
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                row_groups.append(RowGroup(path, group, folder, rows))
    if not row_groups:
        splits = ", ".join(sorted({shard.split for shard in manifest.shards}))
        if not splits:
            raise UserError(f"{root} contains no images; is the run finished?")
        problem = f"has no split {split!r}; it has {splits}" if split else "contains no images"
        raise UserError(f"{root} {problem}")
    return row_groups


def iter_rows(row_group: RowGroup) -> Iterator[tuple[Record, bytes | None]]:
    """Yield the record of each row, and the image file that it holds.

    Raises:
        UserError: the shard is damaged.
    """
    table = read_row_group(row_group.file, row_group.group, _COLUMNS, (IMAGE_COLUMN,))
    for index, record in enumerate(from_table(table)):
        [image] = embedded_images(table.slice(index, 1))
        yield record, image


@dataclass
class WriteSummary:
    """How many images were written and how many failed; reason: of the first failure."""

    images: int = 0
    failed: int = 0
    reason: str = ""

    def add(self, prediction: ImagePrediction) -> None:
        self.images += prediction.pairs is not None
        self.failed += prediction.pairs is None
        self.reason = self.reason or prediction.error or ""


def top_triplets(
    pairs: PredictedPairs, limit: int, possible: Array | None = None
) -> tuple[Array, Array, Array]:
    """Return the best triplets of an image by descending score: pairs, predicates and scores
    `[triplets]`.

    Args:
        possible: `[predicates, objects]`, 0 for impossible combinations, which get score 0, as in
            evaluators.
    """
    scores = pairs.scores
    if possible is not None:
        scores = np.where(possible.T[pairs.object_labels] == 0, np.float32(0), scores)
    flat = scores.reshape(-1)
    chosen = largest(flat, limit)
    chosen = chosen[flat[chosen] != NOT_PREDICTED]
    return *np.divmod(chosen, max(scores.shape[1], 1)), flat[chosen]


def write_hoia(
    predictions: Iterable[ImagePrediction],
    out: Path,
    schema: HoiaSchema,
    key: str,
    limit: int,
    possible: Array | None = None,
) -> WriteSummary:
    """Write the `limit` best triplets of each image in the HOIA format, for `sgpipe eval hico` and
    `eval openimages`.

    Args:
        key: of the list of relations.
        possible: see `top_triplets`.
    """
    objects = list(schema.objects)
    relations = list(schema.relations)

    def items(prediction: ImagePrediction, pairs: PredictedPairs) -> list[Item]:
        pair, predicate, score = top_triplets(pairs, limit, possible)
        # In the order of the queries, which breaks ties.
        used, place = np.unique(pair, return_inverse=True)
        boxes = np.concatenate((pairs.subject_boxes[used], pairs.object_boxes[used]))
        labels = np.concatenate((pairs.subject_labels[used], pairs.object_labels[used]))
        predictions = [
            {"bbox": box, "category_id": objects[label]}
            for box, label in zip(boxes.tolist(), labels.tolist(), strict=True)
        ]
        triplets = zip(place.tolist(), predicate.tolist(), score.tolist(), strict=True)
        found_relations = [
            {
                "subject_id": subject,
                "object_id": subject + len(used),
                "category_id": relations[number],
                "score": confidence,
            }
            for subject, number, confidence in triplets
        ]
        file_name = prediction.row.file_name
        return [{"file_name": file_name, "predictions": predictions, key: found_relations}]

    return write_json_list(predictions, out, items, schema)


def write_graphs(
    predictions: Iterable[ImagePrediction], out: Path, classes: DatasetClasses, limit: int
) -> WriteSummary:
    """Write the `limit` best pairs of each image with the scores of all predicates, for `sgpipe
    eval vg`.
    """
    schema = HoiaSchema(
        HICO.key, dict(enumerate(classes.objects, 1)), dict(enumerate(classes.relations, 1))
    )

    def items(prediction: ImagePrediction, pairs: PredictedPairs) -> list[Item]:
        item: Item = {"image_id": prediction.row.image_id}
        for name, values in vars(predicted_graph(pairs, limit)).items():
            item[name] = values.tolist()
        return [item]

    return write_json_list(predictions, out, items, schema)


def predicted_graph(pairs: PredictedPairs, limit: int) -> PredictedGraph:
    """Return the `limit` best pairs by the score of their best predicate, each pair with two boxes
    of its own.

    Labels start at 1. Boxes have score 1, as the scores of predicates are subject x object x
    predicate.
    """
    order = largest(pairs.scores.max(1, initial=0.0), limit)
    count = len(order)
    scores = pairs.scores[order]
    return PredictedGraph(
        np.concatenate((pairs.subject_boxes[order], pairs.object_boxes[order])),
        1 + np.concatenate((pairs.subject_labels[order], pairs.object_labels[order])),
        np.ones(2 * count, dtype=np.float32),
        np.stack((np.arange(count), count + np.arange(count)), -1),
        np.concatenate((np.zeros((count, 1), dtype=scores.dtype), scores), 1),
    )


def write_vcoco(
    predictions: Iterable[ImagePrediction], out: Path, classes: DatasetClasses
) -> WriteSummary:
    """Write pairs as persons with scores of actions and roles, for `sgpipe eval vcoco`.

    "hit" and "hit with" are roles of one action.

    Raises:
        UserError: as `coco_image_id` and `people_converter`.
    """
    parts = [_official_role(name) for name in classes.relations]
    names = tuple(dict.fromkeys(action for action, _ in parts))
    roles = [(action, role) for action, role in parts if role]
    actions = Actions(names, tuple(Role(names.index(action), role) for action, role in roles))
    agent_keys = [f"{name}_{AGENT}" for name in names]
    role_keys = [f"{action}_{role}" for action, role in roles]
    convert = people_converter(classes, actions)

    def items(prediction: ImagePrediction, pairs: PredictedPairs) -> list[Item]:
        people = convert(pairs)
        image = coco_image_id(prediction.row)
        role_values = np.append(people.role_boxes, people.role_scores[..., None], axis=2)
        persons: list[Item] = []
        for person, box in enumerate(people.boxes.tolist()):
            scores = people.agent_scores[person].tolist()
            roles = map(_without_nan, role_values[person].tolist())
            item: Item = {"image_id": image, "person_box": box}
            item |= zip(agent_keys, scores, strict=True)
            item |= zip(role_keys, roles, strict=True)
            persons.append(item)
        return persons

    return write_json_list(predictions, out, items)


def _without_nan(values: list[float]) -> list[float | None]:
    """Return null for NaN, which JSON does not have: a missing object has no box."""
    return [None if np.isnan(value) else value for value in values]


def people_converter(
    classes: DatasetClasses, actions: Actions, possible: Array | None = None
) -> Callable[[PredictedPairs], PredictedPeople]:
    """Return what makes a person with actions of each pair. The score of an action is the best
    score of its roles.

    Args:
        possible: see `top_triplets`; without an object, all is possible.

    Raises:
        UserError: the classes lack an action or a role of V-COCO.
    """
    parts = [_official_role(name) for name in classes.relations]
    roles = [(actions.names[role.action], role.name) for role in actions.roles]
    missing = {*actions.names} - {action for action, _ in parts}
    missing |= {f"{action}_{role}" for action, role in {*roles} - {*parts}}
    if missing:
        raise UserError(
            f"the classes lack V-COCO's {min(missing)!r}; use shards of `sgpipe import vcoco`"
        )
    nothing = classes.objects.index(NO_OBJECT) if NO_OBJECT in classes.objects else -1
    columns = [parts.index(role) for role in roles]

    def convert(pairs: PredictedPairs) -> PredictedPeople:
        objectless = pairs.object_labels == nothing
        scores = pairs.scores
        if possible is not None:
            allowed = (possible.T[pairs.object_labels] != 0) | objectless[:, None]
            scores = np.where(allowed, scores, np.float32(0))
        agents = np.full((len(pairs), len(actions.names)), -np.inf)
        for column, (action, _) in enumerate(parts):
            index = actions.names.index(action)
            agents[:, index] = np.maximum(agents[:, index], scores[:, column])
        boxes = np.where(objectless[:, None], np.nan, pairs.object_boxes.astype(float))
        role_boxes = np.repeat(boxes[:, None], len(columns), axis=1)
        return PredictedPeople(
            pairs.subject_boxes.astype(float), agents, scores[:, columns].astype(float), role_boxes
        )

    return convert


@cache
def _official_role(name: str) -> tuple[str, str]:
    """V-COCO's action and role for a predicate of sgpipe; the role is empty if only the person
    acts.
    """
    official_names = {ours: official for official, ours in official_relation_names("vcoco").items()}
    official = official_names.get(name, name)
    action, _, role = official.rpartition("_")
    return (action, role) if role in ("obj", "instr") else (official, "")


def write_json_list(
    predictions: Iterable[ImagePrediction],
    out: Path,
    items: Items,
    schema: HoiaSchema | None = None,
) -> WriteSummary:
    """Write the items of all predictions as one JSON list, one item per line; failed images are
    left out.

    The first item lists the names of the `schema` under `CLASSES`, so that an evaluation can map
    them to its own.
    """
    summary = WriteSummary()
    separator = "[\n"
    first: Item = {CLASSES: schema.class_list} if schema else {}
    with write_result(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for prediction in predictions:
            summary.add(prediction)
            if prediction.pairs is None:
                continue
            for item in items(prediction, prediction.pairs):
                file.write(separator + json.dumps(item | first, allow_nan=False))
                separator = ",\n"
                first = {}
        file.write("\n]\n" if separator != "[\n" else "[]\n")
    return summary


def write_parquet(
    predictions: Iterable[ImagePrediction],
    out: Path,
    classes: DatasetClasses,
    limit: int,
    possible: Array | None = None,
) -> WriteSummary:
    """Write the `limit` best triplets of each image by name, with boxes as pixel xyxy; `possible`:
    see `top_triplets`.

    `pair` is the index of a triplet's pair in the image; `error` says why an image has no triplets.
    """
    summary = WriteSummary()

    def row(prediction: ImagePrediction) -> dict[str, object]:
        summary.add(prediction)
        values = {name: getattr(prediction.row, name) for name in _NAMES}
        values["error"] = prediction.error
        pairs = prediction.pairs
        if pairs is None:
            return values
        pair, predicate, score = top_triplets(pairs, limit, possible)
        columns = (
            pair.tolist(),
            [classes.objects[number] for number in pairs.subject_labels[pair]],
            [classes.relations[number] for number in predicate],
            [classes.objects[number] for number in pairs.object_labels[pair]],
            score.tolist(),
            pairs.subject_boxes[pair].tolist(),
            pairs.object_boxes[pair].tolist(),
        )
        triplets = zip(*columns, strict=True)
        values["triplets"] = [dict(zip(_TRIPLET, triplet, strict=True)) for triplet in triplets]
        return values

    rows = map(row, predictions)
    with (
        write_result(out) as temporary,
        pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer,
    ):
        for part in iter(lambda: list(islice(rows, _ROWS_PER_WRITE)), []):
            writer.write_table(pa.Table.from_pylist(part, schema=SCHEMA))
    return summary
