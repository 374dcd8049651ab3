"""Datasets in the hub's form: Parquet files, to be labelled or imported; images in their rows are
not unpacked.

What `sgpipe export --to hf` wrote has sgpipe's columns. Of others, SGG-Benchmark's are understood
without a mapping (github.com/Maelic/SGG-Benchmark, sgg_benchmark/data/datasets/download.py):
`image_id` `width` `height` `file_name`, `objects` (`id` `bbox` `category_id` `iscrowd`),
`relations` (`subject_id` `object_id` `predicate_id`), and names in categories.json, by id.
"""

import fnmatch
import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sgpipe.errors import StoreError, UserError
from sgpipe.files.hub import DATASETS, HubDataset
from sgpipe.files.image_roots import ImageRoot, absolute, existing_images
from sgpipe.files.locations import Location, is_uri, read_text
from sgpipe.files.roots import ParquetImages, holds_images, image_columns, row_name
from sgpipe.images import read_size
from sgpipe.recipe import HubColumns, HubConfig, Recipe, SourceConfig, SplitConfig
from sgpipe.records import HUB_DATASET, SCHEMA, Box, Record, Relation, from_table
from sgpipe.sources import fields
from sgpipe.sources.annotated import (
    AnnotationSource,
    DatasetClasses,
    ProblemCounts,
    drop_nameless,
    error_row,
)
from sgpipe.sources.coco import CocoInstances
from sgpipe.sources.detections import Detections, settle_boxes, size_or_reason
from sgpipe.sources.fields import FieldError
from sgpipe.sources.hoi import read_classes
from sgpipe.storage.shards import IMAGE_COLUMN, open_shard, row_faults
from sgpipe.utils.console import count

# data/train-00000-of-00002.parquet, and default/train/0000.parquet, as the hub converts other forms
_SHARD = re.compile(
    r"(?:(?P<subset>[^/]+)/)?(?:[^/]+/)*(?P<split>\w+?)-\d+-of-\d+(?:-\w+)?\.parquet"
)
_FOLDER = re.compile(r"(?:(?P<subset>[^/]+)/)?(?:partial-)?(?P<split>[A-Za-z]\w*)/\d+\.parquet")
_KEYWORDS = {  # in the names of other files, and the split that `datasets` takes them for
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_FOLDERS = ("data", "default")  # that name no subset
_DEFAULT = "default"


_PARENTS = {  # of the columns of a group
    "": ("",),
    "objects": ("objects", "annotations", "object", "annotation", ""),
    "relations": ("relations", "relationships", "rel_annotations", "triplets"),
}
_COLUMNS: dict[
    str, tuple[str, Sequence[str]]
] = {  # the keys of --map, their groups and usual names
    **{
        "image_id": ("", ("image_id", "id")),
        "file_name": ("", ("file_name", "filename", "image_path")),
    },
    **{"width": ("", ("width",)), "height": ("", ("height",))},
    "objects.bbox": ("objects", ("bbox", "bboxes", "boxes", "box")),
    "objects.category": (
        "objects",
        (
            *(
                "category",
                "categories",
                "category_id",
                "category_ids",
                "label",
                "labels",
                "class",
                "classes",
            ),
            *(
                "class_label",
                "class_labels",
                "class_id",
                "class_ids",
                "category_name",
                "name",
                "names",
            ),
        ),
    ),
    "objects.id": ("objects", ("id", "object_id")),
    "objects.iscrowd": ("objects", ("iscrowd", "is_crowd", "crowd")),
    "objects.segmentation": ("objects", ("segmentation",)),
    "relations.subject": ("relations", ("subject_id", "subject")),
    "relations.object": ("relations", ("object_id", "object")),
    "relations.predicate": ("relations", ("predicate_id", "predicate", "name", "label")),
    "relations.confidence": ("relations", ("confidence", "score")),
}
_REQUIRED = (
    "objects.bbox",
    "objects.category",
    "relations.subject",
    "relations.object",
    "relations.predicate",
)
_OF_RECIPE = {  # the same of source.hub.columns
    **{"boxes": "objects.bbox", "classes": "objects.category", "crowd": "objects.iscrowd"},
    **{"id": "image_id", "width": "width", "height": "height"},
}


_ROWS_PER_BATCH = 256


# Keys of the file metadata: the closed class lists, or null; and the identities of the runs that
# the rows come from.
CLASSES_KEY = "sgpipe.classes"
ORIGIN_KEY = "sgpipe.origin"


# the columns of a group as COCO with rel_annotations calls them, and which of them is a name
_ITEMS = {
    "objects": (("bbox", "category_id", "id", "iscrowd", "segmentation"), "category_id"),
    "relations": (("subject_id", "object_id", "predicate_id", "confidence"), "predicate_id"),
}


def find_files(config: HubConfig) -> tuple[ImageRoot, dict[str, list[str]]]:
    """Return a dataset, and its Parquet files by split, for a subset and split. Raises UserError,
    StoreError.
    """
    dataset = config.dataset or ""
    is_path = is_uri(dataset) or dataset.startswith(("/", ".", "~")) or Path(dataset).is_dir()
    on_hub = not is_path and HubDataset.parse(dataset)
    root = existing_images(f"{DATASETS}{dataset}" if on_hub else absolute(dataset.rstrip("/")))
    names = sorted(entry.name for entry in root.entries() if "/." not in f"/{entry.name}")
    subsets = _find_subsets(names, _card(root) if "README.md" in names else {})
    if not subsets:
        converted = (
            f"; try --dataset {dataset.partition('@')[0]}@refs/convert/parquet" if on_hub else ""
        )
        raise UserError(
            f"{dataset} has no Parquet files, such as train-00000-of-00001.parquet{converted}"
        )
    name = config.subset or (_DEFAULT if _DEFAULT in subsets else next(iter(subsets)))
    if name not in subsets or not (config.subset or len(subsets) == 1 or _DEFAULT in subsets):
        what = "no such subset" if config.subset else "several subsets"
        shown = ", ".join(map(fields.single_line, subsets)) + " (import hf: --subset)"
        raise UserError(f"{dataset} has {what}: pass --set source.hub.subset=NAME, one of {shown}")
    splits = subsets[name]
    if config.split is not None and config.split not in splits:
        raise UserError(
            f"{dataset} has no split {config.split!r}: pass --split {' or '.join(splits)}"
        )
    bad = [split for split in splits if not re.fullmatch(r"\w{1,64}", split)]
    if bad:
        raise UserError(f"{dataset}: the split {bad[0]!r} is not a name of letters and digits")
    return root, splits if config.split is None else {config.split: splits[config.split]}


def _card(root: ImageRoot) -> dict[str, Any]:
    try:
        head = re.match(r"---\s*\n(.*?)\n---", read_text(root.file("README.md"), "card"), re.DOTALL)
        card = yaml.safe_load(head[1]) if head else None
    except (UserError, yaml.YAMLError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def _find_subsets(names: Sequence[str], card: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Return the files by subset and split, as patterns of the card's `configs` name them, or by
    their names alone.
    """
    parquet = [name for name in names if name.endswith(".parquet")]
    subsets: dict[str, dict[str, list[str]]] = {}
    for config in fields.as_list(card.get("configs")):
        for each in fields.as_list(config.get("data_files") if isinstance(config, dict) else None):
            item = each if isinstance(each, dict) else {"path": each}
            patterns = [
                str(path).removeprefix("./").replace("**/", "*")
                for path in fields.as_list(item.get("path"))
            ]
            found = [
                name
                for name in parquet
                if any(fnmatch.fnmatchcase(name, each) for each in patterns)
            ]
            if found:
                subset = subsets.setdefault(str(config.get("config_name") or _DEFAULT), {})
                subset.setdefault(str(item.get("split", "train")), []).extend(found)
    if subsets:
        return subsets
    for name in parquet:
        match = _SHARD.fullmatch(name) or _FOLDER.fullmatch(name)
        if match and match["split"] not in _FOLDERS:
            folder = match["subset"]
            split = match["split"]
        else:
            words = re.split(r"[^a-z]+", name.removesuffix(".parquet").lower())
            folder = PurePosixPath(name).parts[0] if "/" in name else None
            folder = None if folder == "train" or folder in _KEYWORDS else folder
            split = next((_KEYWORDS[word] for word in words if word in _KEYWORDS), "train")
        subset_name = _DEFAULT if folder is None or folder in _FOLDERS else folder
        subsets.setdefault(subset_name, {}).setdefault(split, []).append(name)
    return subsets


def map_columns(
    schema: pa.Schema,
    usual: Mapping[str, tuple[str, Sequence[str]]],
    named: Mapping[str, str],
    required: Collection[str],
    file: str,
    option: str,
) -> dict[str, str | None]:
    """Return the column of each key: that of `named` ("": it has none), or one of the usual names
    of its group.

    The columns of a group are beside its first one. Raises UserError: there is no such column, or a
    required one.
    """
    parents = dict(_PARENTS)
    found = dict[str, str | None]()
    there = all_columns(schema)
    for key, (group, names) in usual.items():
        usual_names = (
            f"{parent}.{name}".lstrip(".") for parent in parents[group] for name in names
        )
        fits = (name for name in usual_names if name in there and (there[name][0] or not group))
        column = named[key] or None if key in named else next(fits, None)
        if (column and column not in there) or (not column and key in required):
            raise no_column(schema, file, column or f"of {key}", f"{option}{key}")
        if group and column:
            parents[group] = (column.rpartition(".")[0],)
        found[key] = column
    return found


def no_column(schema: pa.Schema, file: str, column: str, option: str) -> UserError:
    """Return what to raise if a file lacks a column; `option` names another one."""
    return UserError(
        f"{file} has no column {column}: pass {option}=COLUMN; it has"
        f" {', '.join(all_columns(schema))}"
    )


def find_columns(
    schema: pa.Schema, named: HubColumns, file: str
) -> tuple[dict[str, str | None], str | None]:
    """Return the columns of a file by setting: named ones, or those of usual names; and of images,
    unless it is alone.

    There are width and height, or neither. Raises UserError.
    """
    option = "--set source.hub.columns."
    images = image_columns(schema)
    given = {setting: name for setting, name in named if name is not None}
    usual = {setting: _COLUMNS[key] for setting, key in _OF_RECIPE.items()} | {"captions": ("", ())}
    found = map_columns(schema, usual, given, ("boxes", "classes"), file, option)
    there = all_columns(schema)
    captions = found["captions"]
    lists, kind = there[str(found["boxes"])]
    if lists != 2 or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise no_column(
            schema,
            file,
            f"of boxes of four numbers ({found['boxes']} has others)",
            f"{option}boxes",
        )
    if captions and (there[captions][0] > 1 or not is_text(there[captions][1])):
        raise no_column(schema, file, f"of texts ({captions} has others)", f"{option}captions")
    image = named.image or (images[0] if len(images) == 1 else None)
    if image is None or image not in schema.names or not holds_images(schema.field(image).type):
        raise no_column(
            schema, file, f"of images, or several: {', '.join(images)}", f"{option}image"
        )
    if None in (found["width"], found["height"]):
        found |= {"width": None, "height": None}
    return found, None if images == [image] else image


def all_columns(
    columns: Iterable[pa.Field], before: str = "", depth: int = 0
) -> dict[str, tuple[int, pa.DataType]]:
    """Return columns, and those within them, by dotted names: in how many lists their values are,
    and the type.

    One whose own name has a dot is left out: `_value_of` would look for it within another.
    """
    found: dict[str, tuple[int, pa.DataType]] = {}
    for column in (each for each in columns if "." not in each.name):
        kind = column.type
        lists = depth
        while (
            pa.types.is_list(kind)
            or pa.types.is_large_list(kind)
            or pa.types.is_fixed_size_list(kind)
        ):
            kind = kind.value_type
            lists = lists + 1
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        name = f"{before}{column.name}"
        found[name] = lists, kind
        if pa.types.is_struct(kind):
            found |= all_columns(kind, f"{name}.", lists)
    return found


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def number_names(
    root: ImageRoot, schema: pa.Schema, column: str, listed: str, option: str
) -> dict[int, str]:
    """Return the names of a column of numbers: a ClassLabel of `datasets`, or a list of
    categories.json.

    Raises UserError: there is neither; `option` names them.
    """
    described = _metadata(schema, "huggingface")
    with suppress(AttributeError, LookupError, TypeError):
        for name in ("info", "features", *column.split("."), "names"):
            while (
                isinstance(described, list) or {"_type", "feature"} <= described.keys()
            ):  # of a list
                described = described[0] if isinstance(described, list) else described["feature"]
            described = described[name]
        return {number: fields.clean(described[number]) for number in range(len(described))}
    try:
        content = json.loads(read_text(root.file("categories.json"), "file"))
        return {fields.integer(each, "id"): fields.text(each, "name") for each in content[listed]}
    except (FileNotFoundError, ValueError, KeyError, TypeError, UserError):
        raise UserError(
            f"{root.location}: the numbers in {column} have no names: pass {option}"
        ) from None


@contextmanager
def open_parquet(root: ImageRoot, name: str) -> Iterator[pq.ParquetFile]:
    """Open a file of a dataset. Raises UserError, also while it is read: it is not a Parquet
    file.
    """
    try:
        with pq.ParquetFile(root.open_file(name), pre_buffer=False) as parquet:
            yield parquet
    except StoreError:
        raise
    except (pa.ArrowException, OSError) as error:  # the latter of damaged pages
        raise UserError(f"{name} cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def iter_values(
    parquet: pq.ParquetFile, columns: Mapping[str, str | None]
) -> Iterator[dict[str, Any]]:
    """Yield the values of each row by the keys of its columns; of columns within a list, lists; of
    None, None.

    A column within others is read with them, as Parquet's names of parts vary.
    """
    names = list(dict.fromkeys(name.partition(".")[0] for name in columns.values() if name))
    for batch in parquet.iter_batches(_ROWS_PER_BATCH, columns=names, use_threads=False):
        for row in batch.to_pylist():
            yield {key: _value_of(row, column) for key, column in columns.items()}


def _value_of(row: Any, dotted: str | None) -> Any:
    for name in dotted.split(".") if dotted else ():
        if isinstance(row, list):
            row = [each and each.get(name) for each in row]
        else:
            row = row and row.get(name)
    return row if dotted else None


def class_table(root: ImageRoot, files: Iterable[str], config: HubConfig) -> dict[int, str]:
    """Return class names by number, sorted if the files have names. Raises UserError: they have
    only numbers.
    """
    if config.classes is not None:
        return dict(enumerate(config.classes))
    names: set[str] = set()
    for name in files:
        with open_parquet(root, name) as parquet:
            schema = parquet.schema_arrow
            column = str(find_columns(schema, config.columns, name)[0]["classes"])
            if not is_text(all_columns(schema)[column][1]):
                return number_names(
                    root, schema, column, "categories", "--set 'source.hub.classes=[NAME, …]'"
                )
            for row in iter_values(parquet, {"classes": column}):
                names.update(each for each in fields.as_list(row["classes"]) if each)
    return dict(enumerate(sorted(fields.clean(name) for name in names if name.strip())))


def read_split(source: SourceConfig, split: str) -> tuple[Detections, dict[str, Any]]:
    """Return the images and boxes of a split, in the order of its files, and where they come
    from.
    """
    config = source.hub
    root, splits = find_files(config)
    names = class_table(root, itertools.chain.from_iterable(splits.values()), config)
    detections = Detections(HUB_DATASET, split, dict(names))
    numbers: dict[Any, int] = {name: number for number, name in names.items()}
    ids: list[str | None] = []
    for file in splits[split]:
        with open_parquet(root, file) as parquet:
            of, image = find_columns(parquet.schema_arrow, config.columns, file)
            for number, row in enumerate(iter_values(parquet, of)):
                name = row_name(file, number, image)
                image_id = len(ids) if config.columns.id is None else row["id"]
                ids.append(fields.identifier(row["id"]))
                size = (row["width"], row["height"])
                why = ""
                if of["width"] is None:
                    size, why = size_or_reason(root, name)
                boxes = fields.as_list(row["boxes"])
                classes = fields.as_list(row["classes"])
                crowds = fields.as_list(row["crowd"]) if of["crowd"] else [False] * len(boxes)
                fits = len(boxes) == len(classes) == len(crowds)
                if not (why or fits):
                    why = (
                        f"it has {count(len(boxes), 'box', 'boxes')} and"
                        f" {count(len(classes), 'class', 'classes')}"
                    )
                    why += (
                        f", {count(len(crowds), 'value')} of {of['crowd']}" if of["crowd"] else ""
                    )
                item = {"id": image_id, "file_name": name, "width": size[0], "height": size[1]}
                at = detections.attempt(detections.add_image, item, why)
                if at is None:
                    continue
                for box, kind, crowd in zip(boxes, classes, crowds, strict=True) if fits else ():
                    is_name = kind is None or isinstance(kind, str)
                    kind = numbers.get(fields.clean(kind or ""), -1) if is_name else kind
                    detections.attempt(detections.add_row_box, at, kind, box, crowd)
                for text in fields.as_list(row["captions"]):
                    detections.attempt(detections.add_text, at, text)
    if (
        config.columns.id is None and None not in ids and len(set(ids)) == len(ids)
    ):  # a column has ids of the images
        detections.position = {str(image_id): row for row, image_id in enumerate(ids)}
    notes = settle_boxes(detections, source.boxes, f"{config.dataset} ({split})", choose=True)

    def hashed(*values: Any) -> Any:
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode())

    digest = hashed(detections.categories, list(detections.position), detections.file_names)
    for values in ("sizes", "box_rows", "box_categories", "box_crowds", "boxes"):
        digest.update(getattr(detections, values).tobytes())
    return detections, {
        "annotations": config.dataset,
        "captions": config.columns.captions or "",
        "annotations_sha256": digest.hexdigest(),
        **(
            {"captions_sha256": hashed(detections.captions).hexdigest()}
            if config.columns.captions
            else {}
        ),
        "notes": notes,
    }


def check_hub(recipe: Recipe) -> None:
    """Raises UserError: the recipe names no dataset, or nothing gives captions."""
    hub = recipe.source.hub
    if hub.dataset is None:
        raise UserError("source.hub.dataset is not set (--dataset)")
    if hub.columns.captions is None and recipe.needs_captions:
        raise UserError(
            "no captions: set caption.captioner (--captioner) or source.hub.columns.captions"
        )


def prepare_hub(source: SourceConfig) -> SourceConfig:
    """Return the source with its splits, and with the dataset at the commit that it has now. Raises
    as `find_files`.
    """
    root, files = find_files(source.hub)
    splits = {split: SplitConfig(images=root.location) for split in files}
    hub = source.hub.model_copy(update={"dataset": root.location})
    return source.model_copy(update={"root": None, "splits": splits, "hub": hub})


def stamp_split(source: SourceConfig, split: str) -> dict[str, Any]:
    """Return what identifies the files and settings that the records of a split are read with."""
    settings, (root, files) = (
        source.hub.model_dump(mode="json", exclude={"split"}),
        find_files(source.hub),
    )
    found = (entry for entry in root.entries() if entry.name in files[split])
    contents = [root.location, sorted([entry.name, entry.size, entry.state] for entry in found)]
    return {"hub": settings, "boxes": source.boxes, "contents": contents}


def _exported(split: str, root: ImageRoot, files: Mapping[str, Location]) -> AnnotationSource:
    """Return a split of what `sgpipe export --to hf` wrote, or of what others made of it."""
    first, *others = files.items()
    with open_shard(first[1], SCHEMA.names) as opened:
        schema = opened.schema_arrow
    lists, origin = (_metadata(schema, key) for key in (CLASSES_KEY, ORIGIN_KEY))
    try:
        names = (
            [tuple(map(str, lists[kind])) for kind in ("objects", "relations")]
            if lists is not None
            else None
        )
    except (KeyError, TypeError):
        raise UserError(
            f"{first[1]}: the metadata {CLASSES_KEY!r} is not the lists objects and relations"
        ) from None
    rows = dict[str, str]()
    images = ParquetImages(root.open_file)

    def read(problems: ProblemCounts) -> Iterator[Record]:
        for name, file in files.items():
            numbers = itertools.count()
            with open_shard(file, SCHEMA.names) as shard:
                for group in range(shard.num_row_groups):
                    table = (
                        shard.read_row_group(group, columns=SCHEMA.names)
                        .select(SCHEMA.names)
                        .cast(SCHEMA)
                    )
                    for fault in row_faults(table, split):
                        raise UserError(f"{file}: {fault}")
                    for record, row in zip(from_table(table), numbers, strict=False):
                        rows.setdefault(
                            record.image_id, row_name(name, row, IMAGE_COLUMN)
                        )  # repeated ones are dropped
                        yield record

    def image(record: Record) -> bytes | None:
        with suppress(FileNotFoundError):
            return images.read(rows[record.image_id])
        return None

    return AnnotationSource(
        dataset="hf",
        split=split,
        read=read,
        files={"annotations": first[1], **dict(others)},
        classes=DatasetClasses(*names) if names else None,
        image=image if IMAGE_COLUMN in schema.names else None,
        origin=(
            [each for each in origin if isinstance(each, dict)] if isinstance(origin, list) else ()
        ),
    )


def _metadata(schema: pa.Schema, key: str) -> Any:
    """Return a value of the file metadata, which others may have changed; None if it is missing or
    not JSON.
    """
    try:
        return json.loads((schema.metadata or {}).get(key.encode(), b"null"))
    except (ValueError, RecursionError):
        return None


def dataset_source(
    dataset: str,
    split: str | None = None,
    mapping: Sequence[str] = (),
    classes: Path | None = None,
    subset: str | None = None,
    own_images: bool = True,
) -> tuple[AnnotationSource, str]:
    """Return a split of what sgpipe exported, or of other objects and relations, and where the
    files are.

    Args:
        dataset: a folder, also in a store, or the id of a dataset on the hub.
        mapping: `KEY=COLUMN`, for columns with unusual names; an empty column: it has none.
        classes: JSON with the names of classes and predicates, as `read_classes` reads it.
        own_images: take images from the rows, if they have them, not from files of the name in
            `file_name`.
    """
    root, splits = find_files(HubConfig(dataset=dataset, split=split, subset=subset))
    if len(splits) > 1:
        raise UserError(f"{dataset} has several splits: pass --split {' or '.join(splits)}")
    ((split, names),) = splits.items()
    paths = {name: root.file(name) for name in names}
    location = root.location
    chosen = dict(each.partition("=")[::2] for each in mapping)
    unknown = chosen.keys() - _COLUMNS.keys()
    if unknown:
        raise UserError(f"--map {min(unknown)}: expected one of {', '.join(_COLUMNS)}")

    def columns(schema: pa.Schema, file: str) -> dict[str, str | None]:
        return map_columns(schema, _COLUMNS, chosen, _REQUIRED, file, "--map ")

    with open_parquet(root, names[0]) as parquet:
        schema = parquet.schema_arrow
        if not (mapping or classes) and {"triplets", "status"} <= set(schema.names):
            return _exported(split, root, paths), location
    of = columns(schema, names[0])
    has_own = own_images and len(image_columns(schema)) == 1
    if not has_own and of["file_name"] is None:
        raise UserError(
            f"{names[0]} has neither images nor their names: pass --map file_name=COLUMN"
        )
    given = classes and read_classes(classes)
    tables = list[Mapping[int, str]]()
    for key, listed in (
        ("objects.category", "categories"),
        ("relations.predicate", "rel_categories"),
    ):
        column = str(of[key])
        if is_text(all_columns(schema)[column][1]):
            tables.append({})
        elif given:
            tables.append(given.objects if listed == "categories" else given.relations)
        else:
            tables.append(number_names(root, schema, column, listed, "--classes FILE"))
    closed = DatasetClasses(*(tuple(table.values()) for table in tables)) if all(tables) else None

    def read(problems: ProblemCounts) -> Iterator[Record]:
        total = 0
        for name in names:
            with open_parquet(root, name) as parquet:
                own = columns(parquet.schema_arrow, name)
                for number, values in enumerate(iter_values(parquet, own)):
                    image_id = (
                        fields.identifier(values["image_id"]) if of["image_id"] else str(total)
                    )
                    total += 1
                    place = row_name(name, number) if has_own else values["file_name"]
                    if image_id is None or place in (None, ""):
                        problems["malformed"] += 1
                        continue
                    kind = (
                        HUB_DATASET if has_own else "hf"
                    )  # the former's images are turned as EXIF says
                    record = Record(
                        image_id, kind, split, fields.clean(str(place)), *fields.size(values)
                    )
                    with error_row(record):
                        if has_own and not (record.width and record.height):
                            record.width, record.height = read_size(
                                root, record.file_name, upright=True
                            )
                        record.objects, record.relations = _graph(values, record, tables, problems)
                        drop_nameless(record, problems)
                    yield record

    roles = {
        "annotations": paths.pop(names[0]),
        **paths,
        **({"classes": classes} if classes else {}),
    }
    return AnnotationSource("hf", split, read, roles, {"map": of}, closed, boxes="xywh"), location


def _graph(
    values: Mapping[str, Any],
    record: Record,
    tables: Sequence[Mapping[int, str]],
    problems: ProblemCounts,
) -> tuple[list[Box], list[Relation]]:
    """Return objects and relations of a row. Raises FieldError: lists differ in length, or a value
    is malformed.
    """
    graph = CocoInstances("", "", dict(tables[0]), predicates=dict(tables[1]))
    groups = ((graph.add_box, graph.categories), (graph.add_relation, graph.predicates))
    for (group, (keys, named)), (add, known) in zip(_ITEMS.items(), groups, strict=True):
        columns = [value for key, value in values.items() if key.startswith(group)]
        count = len(columns[0] or ())
        lists = [[None] * count if each is None else each for each in columns]
        if any(not isinstance(each, list) or len(each) != count for each in lists):
            raise FieldError(f"the columns of {group} are not lists of one length")
        for index, each in enumerate(zip(*lists, strict=True)):
            item = {key: value for key, value in zip(keys, each, strict=True) if value is not None}
            name = item.get(named)
            if isinstance(name, str):  # which gets a number, for now
                item[named] = next(
                    (number for number in known if known[number] == name), len(known)
                )
                known[item[named]] = name
            add({"id": index, "image_id": 0} | item)
    numbers = range(len(graph.box_ids))
    objects = graph.objects(numbers, (record.width, record.height), problems)
    boxes = [box if tables[0] else replace(box, category_id=0) for box in objects]
    return boxes, graph.related("0", numbers, graph.predicates)
