"""The columns of a dataset in the hub's form: which of them has what, and the names of numbers."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImageRoot
from sgpipe.files.locations import read_text
from sgpipe.files.roots import holds_images, image_columns
from sgpipe.recipe import HubColumns
from sgpipe.sources import fields

UsualColumns: TypeAlias = Mapping[str, tuple[str, Sequence[str]]]
ColumnsByKey: TypeAlias = dict[str, str | None]

_PARENTS = {  # of the columns of a group
    "": ("",),
    "objects": ("objects", "annotations", "object", "annotation", ""),
    "relations": ("relations", "relationships", "rel_annotations", "triplets"),
}
_CLASS_NAMES = (
    "category",
    "categories",
    "category_id",
    "category_ids",
    "label",
    "labels",
    "class",
    "classes",
    "class_label",
    "class_labels",
    "class_id",
    "class_ids",
    "category_name",
    "name",
    "names",
)
USUAL_COLUMNS: UsualColumns = {  # the keys of --map, their groups and usual names
    "image_id": ("", ("image_id", "id")),
    "file_name": ("", ("file_name", "filename", "image_path")),
    "width": ("", ("width",)),
    "height": ("", ("height",)),
    "objects.bbox": ("objects", ("bbox", "bboxes", "boxes", "box")),
    "objects.category": ("objects", _CLASS_NAMES),
    "objects.id": ("objects", ("id", "object_id")),
    "objects.iscrowd": ("objects", ("iscrowd", "is_crowd", "crowd")),
    "objects.segmentation": ("objects", ("segmentation",)),
    "relations.subject": ("relations", ("subject_id", "subject")),
    "relations.object": ("relations", ("object_id", "object")),
    "relations.predicate": ("relations", ("predicate_id", "predicate", "name", "label")),
    "relations.confidence": ("relations", ("confidence", "score")),
}
REQUIRED = (
    "objects.bbox",
    "objects.category",
    "relations.subject",
    "relations.object",
    "relations.predicate",
)
_USUAL_OF_RECIPE: UsualColumns = {  # of the settings of source.hub.columns
    "boxes": USUAL_COLUMNS["objects.bbox"],
    "classes": USUAL_COLUMNS["objects.category"],
    "crowd": USUAL_COLUMNS["objects.iscrowd"],
    "id": USUAL_COLUMNS["image_id"],
    "width": USUAL_COLUMNS["width"],
    "height": USUAL_COLUMNS["height"],
    "captions": ("", ()),
}
_RECIPE_OPTION = "--set source.hub.columns."
_ROWS_PER_BATCH = 256


def map_columns(
    schema: pa.Schema,
    usual: UsualColumns,
    named: Mapping[str, str],
    required: Collection[str],
    file: str,
    option: str,
) -> ColumnsByKey:
    """Return the column of each key: a named one, or one of the usual names of its group.

    The columns of a group are beside its first one.

    Args:
        named: columns by key; an empty one: there is none.
        option: that names columns, for messages.

    Raises:
        UserError: there is no such column, or a required one is missing.
    """
    parents: dict[str, Sequence[str]] = dict(_PARENTS)
    columns: ColumnsByKey = {}
    available = all_columns(schema)
    for key, (group, names) in usual.items():
        if key in named:
            column = named[key] or None
        else:
            column = _usual_column(available, parents[group], names, in_list=group != "")
        is_missing = column is None and key in required
        if is_missing or (column is not None and column not in available):
            raise no_column(schema, file, column or f"of {key}", f"{option}{key}")
        if group and column:
            parents[group] = (column.rpartition(".")[0],)
        columns[key] = column
    return columns


def _usual_column(
    available: Mapping[str, tuple[int, pa.DataType]],
    parents: Sequence[str],
    names: Sequence[str],
    *,
    in_list: bool,
) -> str | None:
    """Return the first column of a usual name below one of `parents`, or None.

    Args:
        in_list: its values have to be in a list.
    """
    for parent in parents:
        for name in names:
            column = f"{parent}.{name}".lstrip(".")
            if column in available and (available[column][0] or not in_list):
                return column
    return None


def no_column(schema: pa.Schema, file: str, column: str, option: str) -> UserError:
    """Return what to raise if a file lacks a column; `option` names another one."""
    return UserError(
        f"{file} has no column {column}: pass {option}=COLUMN; it has"
        f" {', '.join(all_columns(schema))}"
    )


def find_columns(
    schema: pa.Schema, settings: HubColumns, file: str
) -> tuple[ColumnsByKey, str | None]:
    """Return the columns of a file by setting, and that of images, unless it is the only one.

    There are width and height, or neither.

    Raises:
        UserError: a column is missing, or has values of another type.
    """
    named = {setting: name for setting, name in settings if name is not None}
    columns = map_columns(
        schema, _USUAL_OF_RECIPE, named, ("boxes", "classes"), file, _RECIPE_OPTION
    )
    available = all_columns(schema)
    boxes = str(columns["boxes"])
    if not _has_boxes(*available[boxes]):
        problem = f"of boxes of four numbers ({boxes} has others)"
        raise no_column(schema, file, problem, f"{_RECIPE_OPTION}boxes")
    captions = columns["captions"]
    if captions and not _has_texts(*available[captions]):
        problem = f"of texts ({captions} has others)"
        raise no_column(schema, file, problem, f"{_RECIPE_OPTION}captions")
    if columns["width"] is None or columns["height"] is None:
        columns |= {"width": None, "height": None}
    return columns, _find_images(schema, settings.image, file)


def _find_images(schema: pa.Schema, stated: str | None, file: str) -> str | None:
    """Return the column of images, None if it is the only one."""
    images = image_columns(schema)
    image = stated or (images[0] if len(images) == 1 else None)
    if image is None or image not in schema.names or not holds_images(schema.field(image).type):
        problem = f"of images, or several: {', '.join(images)}"
        raise no_column(schema, file, problem, f"{_RECIPE_OPTION}image")
    return None if images == [image] else image


def _has_boxes(lists: int, kind: pa.DataType) -> bool:
    return lists == 2 and (pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _has_texts(lists: int, kind: pa.DataType) -> bool:
    return lists <= 1 and is_text(kind)


def all_columns(
    columns: Iterable[pa.Field], prefix: str = "", depth: int = 0
) -> dict[str, tuple[int, pa.DataType]]:
    """Return columns, and those within them, by dotted names.

    One whose own name has a dot is left out: `_value_of` would look for it within another.

    Returns:
        In how many lists the values of each are, and their type.
    """
    described: dict[str, tuple[int, pa.DataType]] = {}
    for column in columns:
        if "." in column.name:
            continue
        kind = column.type
        lists = depth
        while _is_list(kind):
            kind = kind.value_type
            lists += 1
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        name = f"{prefix}{column.name}"
        described[name] = lists, kind
        if pa.types.is_struct(kind):
            described |= all_columns(kind, f"{name}.", lists)
    return described


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def number_names(
    root: ImageRoot, schema: pa.Schema, column: str, listed: str, option: str
) -> dict[int, str]:
    """Return the names of a column of numbers.

    They are those of a ClassLabel of `datasets`, or of a list of categories.json.

    Args:
        listed: the key of the list.
        option: that names the numbers, for the message.

    Raises:
        UserError: there is neither.
    """
    with suppress(AttributeError, LookupError, TypeError):
        return _class_label(schema, column)
    try:
        content = json.loads(read_text(root.file("categories.json"), "file"))
        return {fields.integer(item, "id"): fields.text(item, "name") for item in content[listed]}
    except (FileNotFoundError, ValueError, KeyError, TypeError, UserError):
        raise UserError(
            f"{root.location}: the numbers in {column} have no names: pass {option}"
        ) from None


def _class_label(schema: pa.Schema, column: str) -> dict[int, str]:
    """Return the names that `datasets` wrote into the metadata of a file.

    Raises:
        AttributeError, LookupError, TypeError: it wrote none.
    """
    feature = file_metadata(schema, "huggingface")
    for key in ("info", "features", *column.split("."), "names"):
        while isinstance(feature, list) or {"_type", "feature"} <= feature.keys():  # of a list
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        feature = feature[key]
    return {number: fields.clean(feature[number]) for number in range(len(feature))}


def file_metadata(schema: pa.Schema, key: str) -> Any:
    """Return a value of the file metadata; None if it is missing or not JSON."""
    try:
        return json.loads((schema.metadata or {}).get(key.encode(), b"null"))
    except (ValueError, RecursionError):
        return None


def iter_values(
    parquet: pq.ParquetFile, columns: Mapping[str, str | None]
) -> Iterator[dict[str, Any]]:
    """Yield the values of each row by the keys of its columns.

    Those of a column within a list are a list; that of None is None. A column within others is read
    with them, as Parquet's names of parts vary.
    """
    names = list(dict.fromkeys(name.partition(".")[0] for name in columns.values() if name))
    for batch in parquet.iter_batches(_ROWS_PER_BATCH, columns=names, use_threads=False):
        for row in batch.to_pylist():
            yield {key: _value_of(row, column) for key, column in columns.items()}


def _value_of(row: Any, column: str | None) -> Any:
    if not column:
        return None
    value = row
    for name in column.split("."):
        if isinstance(value, list):
            value = [item and item.get(name) for item in value]
        else:
            value = value and value.get(name)
    return value
