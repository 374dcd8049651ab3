"""Datasets in the hub's form: Parquet files with an image and its boxes in each row, read without unpacking them."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from sgpipe.errors import UserError
from sgpipe.files.hub import DATASETS, HubDataset
from sgpipe.files.object_store import StorePath, is_uri
from sgpipe.files.parquet_images import ParquetImages, has_images, image_columns, row_name
from sgpipe.images import ImageError, open_header, upright_size
from sgpipe.recipe import HubConfig, Recipe, SourceConfig, SplitConfig
from sgpipe.records import HUB_DATASET
from sgpipe.sources.annotated import parse_id, replace_surrogates, to_single_line
from sgpipe.sources.detections import Detections
from sgpipe.sources.doubts import settle_boxes
from sgpipe.sources.hub_columns import Columns, class_names, is_text, value_in_each, values_of
from sgpipe.utils import BoxForm
from sgpipe.utils.console import Reminder, count

# data/train-00000-of-00002.parquet, and default/train/0000.parquet, as the hub converts other forms
_SHARD = re.compile(r"(?:(?P<subset>[^/]+)/)?(?:[^/]+/)*(?P<split>\w+?)-\d+-of-\d+(?:-\w+)?\.parquet")
_FOLDER = re.compile(r"(?:(?P<subset>[^/]+)/)?(?:partial-)?(?P<split>[A-Za-z]\w*)/\d+\.parquet")
_KEYWORDS = {  # of the names of other files, and the split that they are of, as `datasets` has it
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_FOLDERS = ("data", "default")  # that name no subset
_DEFAULT = "default"
EMBED = (
    "write Parquet with the images in it: load_dataset(…)['train'].with_format('arrow')"
    ".map(datasets.table.embed_table_storage, batched=True).to_parquet('train.parquet')"
)
_OTHER_FORMS = {
    "dataset_info.json": "was written by save_to_disk: write Parquet with load_from_disk(…).to_parquet(…)",
    "dataset_dict.json": "was written by save_to_disk: write each split with .to_parquet(…)",
    "metadata.jsonl": f"is an image folder: {EMBED}",
}


@dataclass(frozen=True)
class HubFiles:
    """The Parquet files of the splits of a dataset.

    Attributes:
        root: the folder, or the URI of the store, or that of the hub with a commit.
        splits: names of files below the root.
        card: the metadata of its README.
    """

    root: str
    splits: Mapping[str, Sequence[str]]
    card: Mapping[str, Any] = field(default_factory=dict)

    def stamp(self, split: str) -> list[Any]:
        """What identifies the files of a split without reading them."""
        if self.root.startswith(DATASETS):  # whose commits do not change
            return [self.root, list(self.splits[split])]
        if is_uri(self.root):
            infos = {info.name: info for info in StorePath(self.root).list()}
            found = [infos[name] for name in self.splits[split] if name in infos]
            return [[info.name, info.size, info.state] for info in found]
        stats = [(name, (Path(self.root) / name).stat()) for name in self.splits[split]]
        return [[name, status.st_size, status.st_mtime_ns] for name, status in stats]

    def open(self, name: str) -> Path | BinaryIO:
        """A file of the dataset; one of the hub is downloaded into its cache."""
        if self.root.startswith(DATASETS) and (dataset := HubDataset.parse(self.root)):
            return dataset.fetch(name)
        return StorePath(self.root).open(name) if is_uri(self.root) else Path(self.root) / name


def find_files(config: HubConfig) -> HubFiles:
    """The Parquet files of the dataset that the recipe names.

    Raises:
        UserError: there is no such dataset, subset or split, or it is of another form.
        StoreError: the hub or the store cannot be reached.
    """
    dataset = config.dataset or ""
    root, names = _listed(dataset)
    card = _card(HubFiles(root, {}), names)
    subsets = _of_card(card, names) or _of_names(names)
    if not subsets:
        raise _not_parquet(dataset, names)
    splits = _chosen(dataset, config.subset, subsets)
    if config.split is not None and config.split not in splits:
        raise UserError(f"{dataset} has no split {config.split!r}: pass --split {' or '.join(splits)}")
    if bad := [name for name in splits if not re.fullmatch(r"\w{1,64}", name)]:
        raise UserError(f"{dataset}: the split {bad[0]!r} is no name of letters and digits")
    chosen = splits if config.split is None else {config.split: splits[config.split]}
    return HubFiles(root, chosen, card)


def _listed(dataset: str) -> tuple[str, list[str]]:
    """Where the files are, and their names."""
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
    """The metadata at the beginning of README.md; empty if there are none."""
    if "README.md" not in names:
        return {}
    source = files.open("README.md")
    text = source.read_bytes() if isinstance(source, Path) else source.read()
    head = re.match(r"\ufeff?---\s*\n(.*?)\n---", text.decode("utf-8", "replace"), re.DOTALL)
    try:
        card = yaml.safe_load(head[1]) if head else None
    except (yaml.YAMLError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


_Subsets = dict[str, dict[str, list[str]]]


def _of_card(card: Mapping[str, Any], names: Sequence[str]) -> _Subsets:
    """The files by subset and split, as patterns of the card's `configs` name them."""
    subsets: _Subsets = {}
    configs = card.get("configs")
    for config in configs if isinstance(configs, list) else ():
        files = config.get("data_files") if isinstance(config, dict) else None
        for each in files if isinstance(files, list) else [files]:
            item = each if isinstance(each, dict) else {"path": each}
            paths = item.get("path")
            found = _matching(paths if isinstance(paths, list) else [paths], names)
            if found:
                subset = subsets.setdefault(str(config.get("config_name") or _DEFAULT), {})
                subset.setdefault(str(item.get("split", "train")), []).extend(found)
    return subsets


def _matching(patterns: Iterable[Any], names: Sequence[str]) -> list[str]:
    texts = [str(pattern).removeprefix("./") for pattern in patterns]
    return [
        name
        for name in names
        if name.endswith(".parquet") and any(fnmatch.fnmatchcase(name, text.replace("**/", "*")) for text in texts)
    ]


def _of_names(names: Iterable[str]) -> _Subsets:
    """The same by the names of the files alone."""
    subsets: _Subsets = {}
    for name in names:
        if PurePosixPath(name).suffix != ".parquet":
            continue
        folder, split = _of_name(name)
        subset = _DEFAULT if folder is None or folder in _FOLDERS else folder
        subsets.setdefault(subset, {}).setdefault(split, []).append(name)
    return subsets


def _of_name(name: str) -> tuple[str | None, str]:
    """The folder of the subset, if any, and the split."""
    found = _SHARD.fullmatch(name) or _FOLDER.fullmatch(name)
    if found and found["split"] not in _FOLDERS:
        return found["subset"], found["split"]
    words = re.split(r"[^a-z]+", name.removesuffix(".parquet").lower())
    folder = PurePosixPath(name).parts[0] if "/" in name else None
    of_split = folder == "train" or folder in _KEYWORDS
    return None if of_split else folder, next((_KEYWORDS[word] for word in words if word in _KEYWORDS), "train")


def _chosen(dataset: str, subset: str | None, subsets: _Subsets) -> dict[str, list[str]]:
    name = subset or (_DEFAULT if _DEFAULT in subsets else next(iter(subsets)))
    if name in subsets and (subset or len(subsets) == 1 or _DEFAULT in subsets):
        return subsets[name]
    what = "no such subset" if subset else "several subsets"
    shown = ", ".join(to_single_line(each) for each in subsets)
    raise UserError(f"{dataset} has {what}: pass --set source.hub.subset=NAME, one of {shown}")


def _not_parquet(dataset: str, names: Sequence[str]) -> UserError:
    for name in names:
        if why := _OTHER_FORMS.get(PurePosixPath(name).name):
            return UserError(f"{dataset} has no Parquet files: it {why}")
    converted = (
        ""
        if Path(dataset).is_dir() or is_uri(dataset)
        else (f"; the hub may have converted it: pass --dataset {dataset.partition('@')[0]}@refs/convert/parquet")
    )
    return UserError(
        f"{dataset} has no Parquet files with the name of a split (train-00000-of-00001.parquet){converted}"
    )


_ROWS_PER_BATCH = 256


@dataclass(frozen=True)
class _File:
    """An open Parquet file, its name, and its columns."""

    name: str
    parquet: pq.ParquetFile
    columns: Columns

    @classmethod
    @contextmanager
    def open(cls, files: HubFiles, name: str, config: HubConfig) -> Iterator[_File]:
        """Raises UserError: it is not a Parquet file, a column is missing, or there are no images in it."""
        try:
            with pq.ParquetFile(files.open(name), pre_buffer=False) as parquet:
                columns = Columns.find(parquet.schema_arrow, config.columns, name)
                if not has_images(parquet, columns.image):
                    raise UserError(f"{name} has only the paths of its images, in {columns.image}: {EMBED}")
                yield cls(name, parquet, columns)
        except pa.ArrowException as error:
            raise UserError(f"{name} cannot be read as Parquet: {str(error).splitlines()[0]}") from None

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The columns that hold these; a column of columns is read whole, as Parquet's names of its parts vary."""
        columns = dict.fromkeys(name.partition(".")[0] for name in names)
        return self.parquet.iter_batches(_ROWS_PER_BATCH, columns=list(columns), use_threads=False)


def class_table(files: HubFiles, config: HubConfig) -> dict[int, str]:
    """Class names by number. Of classes that are names in the files, the numbers are those of the sorted names.

    Raises UserError: classes are numbers without names.
    """
    if config.classes is not None:
        return dict(enumerate(config.classes))
    names: set[str] = set()
    for name in (name for split in files.splits.values() for name in split):
        with _File.open(files, name, config) as file:
            stated = class_names(file.parquet.schema_arrow, files.card, file.columns.classes)
            if stated is not None:
                return dict(enumerate(map(replace_surrogates, stated)))
            for batch in file.batches([file.columns.classes]):
                values = values_of(batch, file.columns.classes)[1]
                if not is_text(values.type):
                    raise UserError(
                        f"{name}: the classes in {file.columns.classes} are numbers without names: give "
                        "--set 'source.hub.classes=[NAME, …]', in their order"
                    )
                names.update(pc.unique(values).drop_null().to_pylist())
    return dict(enumerate(sorted(replace_surrogates(name) for name in names if name.strip())))


def read_hub(
    files: HubFiles, split: str, config: HubConfig, names: dict[int, str], boxes: BoxForm | None = None
) -> tuple[Detections, dict[str, Any]]:
    """The images and boxes of a split, in the order of its files, and where they come from.

    Args:
        names: the classes by number.
        boxes: the form of the boxes; None: the one that fits.

    Raises UserError: a file is not readable, a column is missing, or the boxes lie in no form in their images.
    """
    reading = _Reading(Detections(HUB_DATASET, split, dict(names)), ParquetImages(files.open))
    by_number = not _have_ids(files, split, config)
    for name in files.splits[split]:
        with _File.open(files, name, config) as file:
            reading.add_file(file, by_number)
    detections = reading.detections
    if not detections.file_names:
        raise UserError(f"{files.root} has no rows in the split {split}")
    notes = settle_boxes(detections, boxes, f"{config.dataset} ({split})", choose=True)
    return detections, {
        "annotations": config.dataset,
        "captions": config.columns.captions or "",
        "annotations_sha256": _digest(detections),
        **({"captions_sha256": _hash(detections.captions).hexdigest()} if config.columns.captions else {}),
        "notes": notes,
    }


def _have_ids(files: HubFiles, split: str, config: HubConfig) -> bool:
    """Whether a column has the ids of the images: one that the user names, or one in which no two are the same."""
    seen: set[Any] = set()
    rows = 0
    for name in files.splits[split]:
        with _File.open(files, name, config) as file:
            if file.columns.id is None or file.columns.surely_ids:
                return file.columns.id is not None
            for batch in file.batches([file.columns.id]):
                seen.update(map(parse_id, value_in_each(batch, file.columns.id)))
                rows += len(batch)
    return len(seen) == rows and None not in seen


@dataclass
class _Reading:
    """Detections of a split, whose boxes are still in the form of the files."""

    detections: Detections
    images: ParquetImages
    rows: int = 0
    reminder: Reminder = field(default_factory=Reminder)

    def add_file(self, file: _File, by_number: bool) -> None:
        """Add the rows of a file; `by_number`: their ids are their numbers in the split."""
        of = file.columns
        only = image_columns(file.parquet.schema_arrow) == [of.image]
        column = None if only else of.image  # names of rows state it if there are others
        read = [of.boxes, of.classes, of.crowd, of.captions, of.width, of.height, None if by_number else of.id]
        at = 0
        for batch in file.batches([name for name in read if name]):
            numbers = range(self.rows, self.rows + len(batch))
            ids = numbers if by_number or of.id is None else value_in_each(batch, of.id)
            names = [row_name(file.name, row, column) for row in range(at, at + len(batch))]
            rows = np.array([self._add_image(*each) for each in zip(ids, names, _sizes(batch, of), strict=True)])
            try:
                self._add_boxes(batch, of, rows)
            except (pa.ArrowException, ValueError) as error:
                raise UserError(
                    f"{file.name}: {of.boxes} and {of.classes} are not boxes of four numbers and their classes "
                    f"({str(error).splitlines()[0]})"
                ) from None
            self._add_captions(batch, of, rows)
            at, self.rows = at + len(batch), self.rows + len(batch)
            self.reminder.say(f"{file.name}: {at:,} of {file.parquet.metadata.num_rows:,} rows are read")

    def _add_image(self, image_id: Any, name: str, size: tuple[Any, Any] | None) -> int:
        """The row of an image in the detections; -1: it is left out, as it has no id, or that of another one."""
        row, why = len(self.detections.file_names), ""
        if size is None:
            size, why = self._size_of(name)
        self.detections.add_image({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
        if row == len(self.detections.file_names):
            return -1
        if why:
            self.detections.errors[row] = f"source: {why}"
        return row

    def _size_of(self, name: str) -> tuple[tuple[int, int], str]:
        """Width and height that an image states itself, and why it has none."""
        try:
            with open_header(BytesIO(self.images.read_name(name)), name) as image:
                return upright_size(image), ""
        except FileNotFoundError:
            return (0, 0), f"the row has no image: {name}"
        except ImageError as error:
            return (0, 0), replace_surrogates(str(error))

    def _add_boxes(self, batch: pa.RecordBatch, of: Columns, rows: np.ndarray) -> None:
        (lengths, boxes), (classes_of, classes) = values_of(batch, of.boxes), values_of(batch, of.classes)
        crowds_of, crowds = values_of(batch, of.crowd) if of.crowd else (lengths, None)
        for i in np.flatnonzero((lengths != classes_of) | (lengths != crowds_of)):
            if rows[i] >= 0:
                others = count(classes_of[i], "class", "classes")
                if lengths[i] == classes_of[i]:
                    others = f"{count(crowds_of[i], 'value')} of {of.crowd}"
                self.detections.errors.setdefault(
                    int(rows[i]), f"source: it has {count(lengths[i], 'box', 'boxes')} and {others}"
                )
            rows[i] = -1
        kept, kept_class, kept_crowd = (np.repeat(rows, each) >= 0 for each in (lengths, classes_of, crowds_of))
        numbers, whole = _fours(boxes)
        self.detections.problems.malformed += int((~whole & kept).sum())
        chosen = kept & whole
        classes = _class_numbers(classes, self.detections.categories)[kept_class][whole[kept]]
        crowd = (
            np.zeros(int(kept.sum()), bool)
            if crowds is None
            else np.asarray(crowds.cast(pa.bool_()).fill_null(False))[kept_crowd]
        )
        self.detections.add_boxes(np.repeat(rows, lengths)[chosen], classes, crowd[whole[kept]], numbers[chosen])

    def _add_captions(self, batch: pa.RecordBatch, of: Columns, rows: np.ndarray) -> None:
        if of.captions is None:
            return
        lengths, texts = values_of(batch, of.captions)
        for row, text in zip(np.repeat(rows, lengths).tolist(), texts.to_pylist(), strict=True):
            if row >= 0:
                self.detections.add_text(row, text)


def _sizes(batch: pa.RecordBatch, of: Columns) -> Iterator[tuple[Any, Any] | None]:
    """Width and height of each row as its columns state them; None: they state none."""
    if of.width is None or of.height is None:
        return repeat(None, len(batch))
    return zip(value_in_each(batch, of.width), value_in_each(batch, of.height), strict=True)


def _fours(boxes: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of each box, `[boxes, 4]`, and whether it has four."""
    numbers = np.full((len(boxes), 4), np.nan)
    whole = np.asarray(pc.equal(pc.list_value_length(boxes), 4).fill_null(False), bool)
    flat = boxes.filter(pa.array(whole)).flatten().cast(pa.float64())
    numbers[whole] = flat.to_numpy(zero_copy_only=False).reshape(-1, 4)
    return numbers, whole


def _class_numbers(classes: pa.Array, names: Mapping[int, str]) -> np.ndarray:
    """The number of each class; -1, which no class has: it has none."""
    if is_text(classes.type):
        numbers = {name: number for number, name in names.items()}
        return np.array([numbers.get(replace_surrogates(name or ""), -1) for name in classes.to_pylist()], np.int64)
    return np.asarray(classes.cast(pa.int64(), safe=False).fill_null(-1)).astype(np.int64)


def _digest(detections: Detections) -> str:
    """A hash of everything that decides the records of a split but its captions."""
    digest = _hash(detections.categories, list(detections.position), detections.file_names)
    categories = np.asarray(detections.box_categories, np.int64)  # as digests have been made since the first
    for values in (detections.sizes, detections.box_rows, categories, detections.box_crowds):
        digest.update(values.tobytes())
    digest.update(detections.boxes.tobytes())
    return digest.hexdigest()


def _hash(*values: Any) -> Any:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode())


def check_hub(recipe: Recipe) -> None:
    """Raises UserError: the recipe names no dataset, or nothing gives captions."""
    hub = recipe.source.hub
    if hub.dataset is None:
        raise UserError("source.hub.dataset is not set (--dataset)")
    if hub.columns.captions is None and recipe.caption.captioner is None and recipe.pair.candidates != "prior":
        raise UserError("no captions: set caption.captioner (--captioner) or source.hub.columns.captions")


def prepare_hub(source: SourceConfig) -> SourceConfig:
    """The source with its splits, and with the dataset at the commit that it has now. Raises as `find_files`."""
    files = find_files(source.hub)
    splits = {split: SplitConfig(images=files.root) for split in files.splits}
    hub = source.hub.model_copy(update={"dataset": files.root})
    return source.model_copy(update={"root": None, "splits": splits, "hub": hub})


def stamp_split(source: SourceConfig, split: str) -> dict[str, Any]:
    """What identifies the files and settings that the records of a split are read with."""
    settings = source.hub.model_dump(mode="json", exclude={"split"})
    return {"hub": settings, "boxes": source.boxes, "contents": find_files(source.hub).stamp(split)}


def read_split(source: SourceConfig, split: str) -> tuple[Detections, dict[str, Any]]:
    """The records of a split, and where they come from. Raises as `read_hub`."""
    files = find_files(source.hub)
    return read_hub(files, split, source.hub, class_table(files, source.hub), source.boxes)
