"""Columns of datasets in the hub's form: which contain images, boxes and classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.errors import UserError
from sgpipe.files.parquet_images import holds_images, image_columns
from sgpipe.recipe import HubColumns

_PARENTS = ("objects", "annotations", "object", "annotation", "")
_BOXES = ("bbox", "bboxes", "boxes", "box")
_CLASSES = (
    *("category", "categories", "category_id", "category_ids", "label", "labels", "class", "classes"),
    *("class_label", "class_labels", "class_id", "class_ids", "category_name", "name", "names"),
)
_CROWDS = ("iscrowd", "is_crowd", "crowd")
_IDS = ("image_id", "id")


@dataclass(frozen=True)
class Columns:
    """The columns that are read, by dotted names; None: there is none.

    `surely_ids`: the user named the column of ids.
    """

    image: str
    boxes: str
    classes: str
    crowd: str | None
    id: str | None
    width: str | None
    height: str | None
    captions: str | None
    surely_ids: bool = False

    @classmethod
    def find(cls, schema: pa.Schema, named: HubColumns, file: str) -> Columns:
        """Raises UserError: a column is missing, or cannot be told from others; the message lists what there is."""
        for setting, name in named.model_dump().items():
            if name is not None:
                _check_named(schema, setting, name, file)
        boxes = named.boxes or _first(schema, _PARENTS, _BOXES)
        if boxes is None:
            raise UserError(f"{file} has no column of boxes: name it with {_set('boxes')}; it has {_shown(schema)}")
        beside = (boxes.rpartition(".")[0],)
        classes = named.classes or _first(schema, beside, _CLASSES) or _first(schema, _PARENTS, _CLASSES)
        if classes is None:
            raise UserError(f"{file} has no column of classes: name it with {_set('classes')}; it has {_shown(schema)}")
        sizes = {side: getattr(named, side) or _first(schema, ("",), (side,)) for side in ("width", "height")}
        if not all(sizes.values()):
            sizes = dict.fromkeys(sizes)
        return cls(
            image=named.image or _only_image(schema, file),
            boxes=boxes,
            classes=classes,
            crowd=named.crowd or _first(schema, beside, _CROWDS),
            id=named.id or _first(schema, ("",), _IDS),
            captions=named.captions,
            surely_ids=named.id is not None,
            **sizes,
        )


def _check_named(schema: pa.Schema, setting: str, name: str, file: str) -> None:
    """Raises UserError: there is no such column, or it does not hold what the setting is for."""
    kind = _kind(schema, name)
    if kind is None:
        raise UserError(f"{file} has no column {name} (source.hub.columns.{setting}): it has {_shown(schema)}")
    fits, what = True, ""
    if setting == "image":
        fits, what = "." not in name and holds_images(kind), "images"
    elif setting == "captions":
        fits, what = is_text(_innermost(kind)), "texts"
    elif setting in ("id", "width", "height"):
        fits, what = not pa.types.is_nested(kind), "one value in each row"
    if not fits:
        raise UserError(
            f"{file}: the column {name} does not hold {what} (source.hub.columns.{setting}); it has {_shown(schema)}"
        )


def _only_image(schema: pa.Schema, file: str) -> str:
    names = image_columns(schema)
    if len(names) != 1:
        what = "several columns" if names else "no column"
        raise UserError(f"{file} has {what} of images: name it with {_set('image')}; it has {_shown(schema)}")
    return names[0]


def _set(setting: str) -> str:
    return f"--set source.hub.columns.{setting}=NAME"


def _shown(schema: pa.Schema) -> str:
    return ", ".join(name for field in schema for name in _dotted(field))


def _dotted(field: pa.Field) -> Iterator[str]:
    """The names of a column, or of those within it."""
    kind = _innermost(field.type)
    if pa.types.is_struct(kind) and not image_columns(pa.schema([field])):
        yield from (f"{field.name}.{name}" for inner in kind for name in _dotted(inner))
    else:
        yield field.name


def _first(schema: pa.Schema, parents: Sequence[str], names: Sequence[str]) -> str | None:
    dotted = (f"{parent}.{name}" if parent else name for parent in parents for name in names)
    return next((name for name in dotted if _kind(schema, name) is not None), None)


def _kind(schema: pa.Schema, dotted: str) -> pa.DataType | None:
    """The type of a column, a list if there are lists on the way to it; None: there is no such column."""
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
    """The type of what is in lists."""
    while _is_list(kind):
        kind = kind.value_type
    return kind


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are texts."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def value_in_each(batch: pa.RecordBatch, dotted: str) -> list[Any]:
    """The value that each row of a column without lists has."""
    first, *rest = dotted.split(".")
    column = batch.column(first)
    return list((pc.struct_field(column, rest) if rest else column).to_pylist())


def values_of(batch: pa.RecordBatch, dotted: str) -> tuple[np.ndarray, pa.Array]:
    """How many values each row of a column has, and all of them. A row without a list has one value, or none if null.

    Raises ValueError: a value is a column of columns.
    """
    first, *rest = dotted.split(".")
    array, lengths = batch.column(first), None
    for name in rest:
        if _is_list(array.type):
            lengths, array = _lengths(array), array.flatten()
        array = pc.struct_field(array, name)
    if lengths is None and _is_list(array.type):
        lengths, array = _lengths(array), array.flatten()
    if lengths is None:
        lengths, array = np.asarray(array.is_valid()).astype(np.int64), array.drop_null()
    if pa.types.is_struct(array.type):
        raise ValueError(f"{dotted} is a column of columns")
    return lengths, array


def _lengths(lists: pa.Array) -> np.ndarray:
    return np.asarray(pc.list_value_length(lists).fill_null(0)).astype(np.int64)


def class_names(schema: pa.Schema, card: Mapping[str, Any], dotted: str) -> list[str] | None:
    """The names of a column of classes, by number, which the file states, or else the card of the dataset."""
    try:
        stated = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        stated = None
    infos = card.get("dataset_info")
    for features in (stated, *(infos if isinstance(infos, list) else [infos])):
        found = _class_label(_by_path(features, dotted.split(".")))
        if found is not None:
            return found
    return None


def _by_path(features: Any, path: Sequence[str]) -> Any:
    """The description of a column: `{name: …}` as files state them, or `[{name:, dtype:, sequence: …}]` as cards do."""
    if isinstance(features, Mapping) and path and path[0] in features and path[0] != "features":
        return _by_path(features[path[0]], path[1:])
    if not path:
        return features
    inner = features.values() if isinstance(features, Mapping) else features if isinstance(features, list) else ()
    for each in inner:
        if isinstance(each, Mapping) and each.get("name") == path[0]:
            return _by_path({key: value for key, value in each.items() if key != "name"}, path[1:])
        if isinstance(each, Mapping | list) and (found := _by_path(each, path)) is not None:
            return found
    return None


def _class_label(feature: Any) -> list[str] | None:
    """The names of the first list of classes within a description."""
    if isinstance(feature, list):
        return next((found for each in feature if (found := _class_label(each))), None)
    if not isinstance(feature, Mapping):
        return None
    label = feature if feature.get("_type") == "ClassLabel" else feature.get("class_label")
    names = label.get("names") if isinstance(label, Mapping) else None
    if isinstance(names, Mapping):  # {"0": "cat"}, as cards have it
        names = [names[key] for key in sorted(names, key=lambda key: int(key) if str(key).isdigit() else 0)]
    if isinstance(names, list):
        return [str(name) for name in names]
    return next((found for each in feature.values() if (found := _class_label(each))), None)
