"""Datasets in the hub's form: Parquet files with an image and its boxes in each row, read without unpacking them."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sgpipe.errors import ImageError, UserError
from sgpipe.files.hub import DATASETS, HubDataset
from sgpipe.files.object_store import StorePath, is_uri
from sgpipe.files.parquet_images import ParquetImages, has_images, holds_images, image_columns, row_name
from sgpipe.images import open_header, upright_size
from sgpipe.recipe import HubColumns, HubConfig, Recipe, SourceConfig, SplitConfig
from sgpipe.records import HUB_DATASET
from sgpipe.sources import fields
from sgpipe.sources.detections import Detections
from sgpipe.sources.doubts import settle_boxes
from sgpipe.utils.console import Reminder, count

# data/train-00000-of-00002.parquet, and default/train/0000.parquet, as the hub converts other forms
_SHARD = re.compile(r"(?:(?P<subset>[^/]+)/)?(?:[^/]+/)*(?P<split>\w+?)-\d+-of-\d+(?:-\w+)?\.parquet")
_FOLDER = re.compile(r"(?:(?P<subset>[^/]+)/)?(?:partial-)?(?P<split>[A-Za-z]\w*)/\d+\.parquet")
_KEYWORDS = {  # in the names of other files, and the split that `datasets` takes them for
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_FOLDERS = ("data", "default")  # that name no subset
_DEFAULT = "default"
_EMBED = (
    "write Parquet with the images in it: load_dataset(…)['train'].with_format('arrow')"
    ".map(datasets.table.embed_table_storage, batched=True).to_parquet('train.parquet')"
)


@dataclass(frozen=True)
class HubFiles:
    """The Parquet files of the splits of a folder, store, or commit of the hub; `card`: metadata of its README."""

    root: str
    splits: Mapping[str, Sequence[str]]
    card: Mapping[str, Any] = field(default_factory=dict)

    def stamp(self, split: str) -> list[Any]:
        """Return what identifies the files of a split without reading them."""
        if self.root.startswith(DATASETS):  # whose commits do not change
            return [self.root, list(self.splits[split])]
        if is_uri(self.root):
            infos = {info.name: info for info in StorePath(self.root).list()}
            found = [infos[name] for name in self.splits[split] if name in infos]
            return [[info.name, info.size, info.state] for info in found]
        stats = [(name, (Path(self.root) / name).stat()) for name in self.splits[split]]
        return [[name, status.st_size, status.st_mtime_ns] for name, status in stats]

    def open(self, name: str) -> Path | BinaryIO:
        """Return a file of the dataset; one of the hub is downloaded into its cache."""
        if self.root.startswith(DATASETS) and (dataset := HubDataset.parse(self.root)):
            return dataset.fetch(name)
        return StorePath(self.root).open(name) if is_uri(self.root) else Path(self.root) / name

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises OSError: there is none."""
        file = self.open(name)
        return file.read_bytes() if isinstance(file, Path) else file.read()


def find_files(config: HubConfig) -> HubFiles:
    """Return the Parquet files of the dataset, subset and split of a recipe. Raises UserError, StoreError."""
    dataset = config.dataset or ""
    root, names = _list_files(dataset)
    card = _card(HubFiles(root, {}), names)
    subsets = _of_card(card, names) or _of_names(names)
    if not subsets:
        on_hub = root.startswith(DATASETS)
        converted = f"; try --dataset {dataset.partition('@')[0]}@refs/convert/parquet" if on_hub else ""
        raise UserError(f"{dataset} has no Parquet files, such as train-00000-of-00001.parquet{converted}")
    name = config.subset or (_DEFAULT if _DEFAULT in subsets else next(iter(subsets)))
    if name not in subsets or not (config.subset or len(subsets) == 1 or _DEFAULT in subsets):
        what = "no such subset" if config.subset else "several subsets"
        shown = ", ".join(map(fields.single_line, subsets)) + " (import hf: --subset)"
        raise UserError(f"{dataset} has {what}: pass --set source.hub.subset=NAME, one of {shown}")
    splits = subsets[name]
    if config.split is not None and config.split not in splits:
        raise UserError(f"{dataset} has no split {config.split!r}: pass --split {' or '.join(splits)}")
    if bad := [split for split in splits if not re.fullmatch(r"\w{1,64}", split)]:
        raise UserError(f"{dataset}: the split {bad[0]!r} is not a name of letters and digits")
    return HubFiles(root, splits if config.split is None else {config.split: splits[config.split]}, card)


def _list_files(dataset: str) -> tuple[str, list[str]]:
    """Return where the files are, and their names."""
    if Path(dataset).is_dir():
        root = Path(dataset).resolve()
        files = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        return str(root), sorted(name for name in files if not name.startswith(".") and "/." not in name)
    if is_uri(dataset) and not dataset.startswith("hf://"):
        reader = StorePath(dataset)
        reader.check()
        return dataset.rstrip("/"), sorted(info.name for info in reader.list())
    if (found := HubDataset.parse(dataset)) is None:
        raise UserError(f"source.hub.dataset (--dataset): no such folder: {dataset}")
    pinned, names = found.list()
    return pinned.uri, names


def _card(files: HubFiles, names: Iterable[str]) -> dict[str, Any]:
    """Return the metadata at the beginning of README.md, if any."""
    if "README.md" not in names:
        return {}
    head = re.match(r"\ufeff?---\s*\n(.*?)\n---", files.read("README.md").decode("utf-8", "replace"), re.DOTALL)
    try:
        card = yaml.safe_load(head[1]) if head else None
    except (yaml.YAMLError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


_Subsets = dict[str, dict[str, list[str]]]


def _of_card(card: Mapping[str, Any], names: Sequence[str]) -> _Subsets:
    """Return the files by subset and split, as patterns of the card's `configs` name them."""
    subsets: _Subsets = {}
    parquet = [name for name in names if name.endswith(".parquet")]
    for config in _as_list(card.get("configs")):
        for each in _as_list(config.get("data_files") if isinstance(config, dict) else None):
            item = each if isinstance(each, dict) else {"path": each}
            patterns = [str(path).removeprefix("./").replace("**/", "*") for path in _as_list(item.get("path"))]
            if found := [name for name in parquet if any(fnmatch.fnmatchcase(name, each) for each in patterns)]:
                subset = subsets.setdefault(str(config.get("config_name") or _DEFAULT), {})
                subset.setdefault(str(item.get("split", "train")), []).extend(found)
    return subsets


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _of_names(names: Iterable[str]) -> _Subsets:
    """Return the files by subset and split, by their names alone."""
    subsets: _Subsets = {}
    for name in names:
        if not name.endswith(".parquet"):
            continue
        found = _SHARD.fullmatch(name) or _FOLDER.fullmatch(name)
        if found and found["split"] not in _FOLDERS:
            folder, split = found["subset"], found["split"]
        else:
            words = re.split(r"[^a-z]+", name.removesuffix(".parquet").lower())
            folder = PurePosixPath(name).parts[0] if "/" in name else None
            folder = None if folder == "train" or folder in _KEYWORDS else folder
            split = next((_KEYWORDS[word] for word in words if word in _KEYWORDS), "train")
        subset = _DEFAULT if folder is None or folder in _FOLDERS else folder
        subsets.setdefault(subset, {}).setdefault(split, []).append(name)
    return subsets


PARENTS = ("objects", "annotations", "object", "annotation", "")
BOXES = ("bbox", "bboxes", "boxes", "box")
CLASSES = (
    *("category", "categories", "category_id", "category_ids", "label", "labels", "class", "classes"),
    *("class_label", "class_labels", "class_id", "class_ids", "category_name", "name", "names"),
)
CROWDS = ("iscrowd", "is_crowd", "crowd")
IDS = ("image_id", "id")


def find_columns(schema: pa.Schema, named: HubColumns, file: str) -> HubColumns:
    """Return the columns of a file that are named, or have the usual names; sizes only both. Raises UserError."""

    def fault(what: str, setting: str) -> UserError:
        there = ", ".join(name for each in schema for name in dotted_names(each))
        return UserError(f"{file} {what}: name it with --set source.hub.columns.{setting}=NAME; it has {there}")

    for setting, name in ((setting, name) for setting, name in named if name is not None):
        kind, fits = kind_of(schema, name), _FITS.get(setting, lambda kind: True)
        if kind is None or not fits(kind) or (setting == "image" and "." in name):
            raise fault(f"has no column {name}{'' if kind is None else ' of that kind'}", setting)
    boxes = named.boxes or first_of(schema, PARENTS, BOXES)
    if boxes is None:
        raise fault("has no column of boxes", "boxes")
    beside = (boxes.rpartition(".")[0],)
    classes = named.classes or first_of(schema, beside, CLASSES) or first_of(schema, PARENTS, CLASSES)
    if classes is None:
        raise fault("has no column of classes", "classes")
    numbers = kind_of(schema, boxes)
    nested = numbers and _is_list(numbers) and _is_list(numbers.value_type) and _innermost(numbers)
    if not nested or not (pa.types.is_integer(nested) or pa.types.is_floating(nested)):
        raise fault(f"has other values than boxes of four numbers in {boxes}", "boxes")
    images = image_columns(schema)
    if named.image is None and len(images) != 1:
        raise fault(f"has {'several columns' if images else 'no column'} of images", "image")
    width, height = (getattr(named, side) or first_of(schema, ("",), (side,)) for side in ("width", "height"))
    found: dict[str, str | None] = {"image": named.image or images[0], "boxes": boxes, "classes": classes}
    found |= {"width": width if height else None, "height": height if width else None}
    crowd, number = named.crowd or first_of(schema, beside, CROWDS), named.id or first_of(schema, ("",), IDS)
    return named.model_copy(update=found | {"crowd": crowd, "id": number})


def dotted_names(column: pa.Field) -> list[str]:
    """Return the name of a column, or of those within it."""
    kind = _innermost(column.type)
    if pa.types.is_struct(kind) and not image_columns(pa.schema([column])):
        return [f"{column.name}.{name}" for inner in kind for name in dotted_names(inner)]
    return [column.name]


def first_of(schema: pa.Schema, parents: Sequence[str], names: Sequence[str]) -> str | None:
    dotted = (f"{parent}.{name}" if parent else name for parent in parents for name in names)
    return next((name for name in dotted if kind_of(schema, name) is not None), None)


def kind_of(schema: pa.Schema, dotted: str) -> pa.DataType | None:
    """Return the type of a column, a list if there are lists on the way to it, or None."""
    first, *rest = dotted.split(".")
    if first not in schema.names:
        return None
    kind, in_lists = schema.field(first).type, False
    for name in rest:
        in_lists, kind = in_lists or _is_list(kind), _innermost(kind)
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return pa.list_(kind) if in_lists else kind


def _innermost(kind: pa.DataType) -> pa.DataType:
    while _is_list(kind):
        kind = kind.value_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(_innermost(kind)) or pa.types.is_large_string(_innermost(kind))


_FITS: Mapping[str, Callable[[pa.DataType], bool]] = {
    **{"image": holds_images, "captions": is_text},
    **dict.fromkeys(("id", "width", "height"), lambda kind: not pa.types.is_nested(kind)),
}


def class_names(schema: pa.Schema, card: Mapping[str, Any], dotted: str) -> list[str] | None:
    """Return the names of a column of classes, by number, which the file states, or else the card of the dataset."""
    try:
        stated = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        stated = None
    found = (_class_label(each, dotted.split(".")) for each in (stated, *_as_list(card.get("dataset_info"))))
    return next((names for names in found if names is not None), None)


def _class_label(described: Any, path: Sequence[str]) -> list[str] | None:
    """Return the names of the first list of classes in the description of a column, by the names on the way to it.

    Files describe columns as `{name: …}`, cards as `[{name:, dtype:, …}]`.
    """
    inner: list[tuple[Any, Any]] = []
    if isinstance(described, list):
        inner = [(each.get("name") if isinstance(each, Mapping) else None, each) for each in described]
    elif isinstance(described, Mapping):
        label = described if described.get("_type") == "ClassLabel" else described.get("class_label")
        names = label.get("names") if isinstance(label, Mapping) and not path else None
        if isinstance(names, Mapping):  # {"0": "cat"}, as cards have it
            names = [names[key] for key in sorted(names, key=lambda key: int(key) if str(key).isdigit() else 0)]
        if isinstance(names, list):
            return [str(name) for name in names]
        inner = list(described.items())
    rest = ((each, path[1:] if path and name == path[0] != "features" else path) for name, each in inner)
    return next((names for part in rest if (names := _class_label(*part)) is not None), None)


_ROWS_PER_BATCH = 256


@contextmanager
def _open_file(files: HubFiles, name: str, config: HubConfig) -> Iterator[tuple[pq.ParquetFile, HubColumns]]:
    """Open a Parquet file; also returns its columns. Raises UserError, also if there are no images in it."""
    with open_parquet(files, name) as parquet:
        columns = find_columns(parquet.schema_arrow, config.columns, name)
        if not has_images(parquet, columns.image or ""):
            raise UserError(f"{name} has only the paths of its images, in {columns.image}: {_EMBED}")
        yield parquet, columns


@contextmanager
def open_parquet(files: HubFiles, name: str) -> Iterator[pq.ParquetFile]:
    """Open a file of a dataset. Raises UserError, also while it is read: it is not a Parquet file."""
    try:
        with pq.ParquetFile(files.open(name), pre_buffer=False) as parquet:
            yield parquet
    except pa.ArrowException as error:
        raise UserError(f"{name} cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def iter_rows(parquet: pq.ParquetFile, columns: Iterable[str | None]) -> Iterator[dict[str, Any]]:
    """Yield the rows, with these columns. One within others is read with them, as Parquet's names of parts vary."""
    names = list(dict.fromkeys(name.partition(".")[0] for name in columns if name))
    for batch in parquet.iter_batches(_ROWS_PER_BATCH, columns=names, use_threads=False):
        yield from batch.to_pylist()


def value_of(row: Any, dotted: str | None) -> Any:
    """Return the value of a column in a row, or None; of columns within a list, a list."""
    for name in dotted.split(".") if dotted else ():
        if isinstance(row, list):
            row = [each and each.get(name) for each in row]
        else:
            row = row and row.get(name)
    return row if dotted else None


def values_of(row: Any, dotted: str | None) -> list[Any]:
    return _as_list(value_of(row, dotted))


def class_table(files: HubFiles, config: HubConfig) -> dict[int, str]:
    """Return class names by number, sorted if the files have names. Raises UserError: they have only numbers."""
    if config.classes is not None:
        return dict(enumerate(config.classes))
    names: set[str] = set()
    for name in (name for split in files.splits.values() for name in split):
        with _open_file(files, name, config) as (parquet, of):
            schema = parquet.schema_arrow
            stated = class_names(schema, files.card, of.classes or "")
            if stated is not None:
                return dict(enumerate(map(fields.clean, stated)))
            if not is_text(kind_of(schema, of.classes or "")):
                raise UserError(
                    f"{name}: the classes in {of.classes} are numbers without names: pass "
                    "--set 'source.hub.classes=[NAME, …]', in their order"
                )
            for row in iter_rows(parquet, [of.classes]):
                names.update(each for each in values_of(row, of.classes) if each)
    return dict(enumerate(sorted(fields.clean(name) for name in names if name.strip())))


def read_split(source: SourceConfig, split: str) -> tuple[Detections, dict[str, Any]]:
    """Return the images and boxes of a split, in the order of its files, and where they come from."""
    config = source.hub
    files = find_files(config)
    names = class_table(files, config)
    detections, images = Detections(HUB_DATASET, split, dict(names)), ParquetImages(files.open)
    numbers: dict[Any, int] = {name: number for number, name in names.items()}
    by_number, total, reminder = not _have_ids(files, split, config), 0, Reminder()
    for file in files.splits[split]:
        with _open_file(files, file, config) as (parquet, of):
            only = image_columns(parquet.schema_arrow) == [of.image]
            read = [of.boxes, of.classes, of.crowd, of.captions, of.width, of.height, None if by_number else of.id]
            for number, row in enumerate(iter_rows(parquet, read)):
                name = row_name(file, number, None if only else of.image)  # states the column if there are others
                image_id, total = total if by_number else value_of(row, of.id), total + 1
                size, why = (value_of(row, of.width), value_of(row, of.height)), ""
                if of.width is None:
                    size, why = _read_size(images, name)
                at = detections.add_image({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
                if at is not None:
                    if why:
                        detections.errors[at] = f"source: {why}"
                    _add_boxes(detections, at, row, of, numbers)
                reminder.say(f"{file}: {number:,} of {parquet.metadata.num_rows:,} rows are read")
    if not total:
        raise UserError(f"{files.root} has no rows in the split {split}")
    notes = settle_boxes(detections, source.boxes, f"{config.dataset} ({split})", choose=True)
    digest = _hash(detections.categories, list(detections.position), detections.file_names)
    for values in ("sizes", "box_rows", "box_categories", "box_crowds", "boxes"):
        digest.update(getattr(detections, values).tobytes())
    return detections, {
        "annotations": config.dataset,
        "captions": config.columns.captions or "",
        "annotations_sha256": digest.hexdigest(),
        **({"captions_sha256": _hash(detections.captions).hexdigest()} if config.columns.captions else {}),
        "notes": notes,
    }


def _hash(*values: Any) -> Any:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode())


def _have_ids(files: HubFiles, split: str, config: HubConfig) -> bool:
    """Return whether a column has ids of the images: one that the user names, or one in which no two are the same."""
    seen, rows = set[Any](), 0
    for name in files.splits[split]:
        with _open_file(files, name, config) as (parquet, of):
            if of.id is None or config.columns.id is not None:
                return of.id is not None
            for row in iter_rows(parquet, [of.id]):
                seen.add(fields.identifier(value_of(row, of.id)))
                rows += 1
    return len(seen) == rows and None not in seen


def _read_size(images: ParquetImages, name: str) -> tuple[tuple[int, int], str]:
    """Return width and height of an image as it is displayed, or zeros and why it has none."""
    try:
        with open_header(BytesIO(images.read_name(name)), name) as image:
            return upright_size(image), ""
    except FileNotFoundError:
        return (0, 0), f"the row has no image: {name}"
    except ImageError as error:
        return (0, 0), fields.clean(str(error))


def _add_boxes(
    detections: Detections, at: int, row: Mapping[str, Any], of: HubColumns, numbers: Mapping[Any, int]
) -> None:
    """Add the boxes and captions of the image number `at`; `numbers` are those of the classes, if they are names."""
    boxes, classes = values_of(row, of.boxes), values_of(row, of.classes)
    crowds = values_of(row, of.crowd) if of.crowd else [False] * len(boxes)
    if len(classes) == len(boxes) == len(crowds):
        for box, kind, crowd in zip(boxes, classes, crowds, strict=True):
            if kind is None or isinstance(kind, str):
                kind = numbers.get(fields.clean(kind or ""), -1)
            detections.add_row_box(at, kind, box, crowd)
    else:
        found = f"source: it has {count(len(boxes), 'box', 'boxes')} and {count(len(classes), 'class', 'classes')}"
        detections.errors.setdefault(at, found + (f", {count(len(crowds), 'value')} of {of.crowd}" if of.crowd else ""))
    for text in values_of(row, of.captions):
        detections.add_text(at, text)


def check_hub(recipe: Recipe) -> None:
    """Raises UserError: the recipe names no dataset, or nothing gives captions."""
    hub = recipe.source.hub
    if hub.dataset is None:
        raise UserError("source.hub.dataset is not set (--dataset)")
    if hub.columns.captions is None and recipe.needs_captions:
        raise UserError("no captions: set caption.captioner (--captioner) or source.hub.columns.captions")


def prepare_hub(source: SourceConfig) -> SourceConfig:
    """Return the source with its splits, and with the dataset at the commit that it has now. Raises as `find_files`."""
    files = find_files(source.hub)
    splits = {split: SplitConfig(images=files.root) for split in files.splits}
    hub = source.hub.model_copy(update={"dataset": files.root})
    return source.model_copy(update={"root": None, "splits": splits, "hub": hub})


def stamp_split(source: SourceConfig, split: str) -> dict[str, Any]:
    """Return what identifies the files and settings that the records of a split are read with."""
    settings = source.hub.model_dump(mode="json", exclude={"split"})
    return {"hub": settings, "boxes": source.boxes, "contents": find_files(source.hub).stamp(split)}
