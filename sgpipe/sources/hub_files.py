"""The Parquet files of a dataset in the hub's form, by subset and split."""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sgpipe.errors import StoreError, UserError
from sgpipe.files.hub import DATASETS, HubDataset
from sgpipe.files.image_roots import ImageRoot, absolute, existing_images
from sgpipe.files.locations import read_text
from sgpipe.files.stores import is_uri
from sgpipe.recipe import HubConfig
from sgpipe.sources import fields

FilesBySplit: TypeAlias = dict[str, list[str]]

# data/train-00000-of-00002.parquet, and default/train/0000.parquet, as the hub converts other forms
_SHARD = re.compile(
    r"(?:(?P<subset>[^/]+)/)?(?:[^/]+/)*(?P<split>\w+?)-\d+-of-\d+(?:-\w+)?\.parquet"
)
_FOLDER = re.compile(r"(?:(?P<subset>[^/]+)/)?(?:partial-)?(?P<split>[A-Za-z]\w*)/\d+\.parquet")
_FRONT_MATTER = re.compile(r"---\s*\n(.*?)\n---", re.DOTALL)
_KEYWORDS = {  # in the names of other files, and the split that `datasets` takes them for
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SPLIT_NAMES = ("train", *_KEYWORDS)  # of folders
_FOLDERS = ("data", "default")  # that name no subset
_DEFAULT = "default"


def find_files(config: HubConfig) -> tuple[ImageRoot, FilesBySplit]:
    """Return a dataset, and its Parquet files by split, for a subset and split.

    Raises:
        UserError: there is no such dataset, subset or split, or it has no Parquet files.
        StoreError: the hub or a store does not answer.
    """
    dataset = config.dataset or ""
    on_hub = _is_on_hub(dataset)
    root = existing_images(f"{DATASETS}{dataset}" if on_hub else absolute(dataset.rstrip("/")))
    subsets = _list_subsets(root)
    if not subsets:
        converted = f"{dataset.partition('@')[0]}@refs/convert/parquet"
        hint = f"; try --dataset {converted}" if on_hub else ""
        raise UserError(
            f"{dataset} has no Parquet files, such as train-00000-of-00001.parquet{hint}"
        )
    splits = subsets[_choose_subset(dataset, config.subset, list(subsets))]
    if config.split is not None and config.split not in splits:
        raise UserError(
            f"{dataset} has no split {config.split!r}: pass --split {' or '.join(splits)}"
        )
    for split in splits:
        if not re.fullmatch(r"\w{1,64}", split):
            raise UserError(f"{dataset}: the split {split!r} is not a name of letters and digits")
    if config.split is not None:
        return root, {config.split: splits[config.split]}
    return root, splits


def _is_on_hub(dataset: str) -> bool:
    if is_uri(dataset) or dataset.startswith(("/", ".", "~")) or Path(dataset).is_dir():
        return False
    return HubDataset.parse(dataset) is not None


def _list_subsets(root: ImageRoot) -> dict[str, FilesBySplit]:
    names = sorted(entry.name for entry in root.entries() if "/." not in f"/{entry.name}")
    parquet = [name for name in names if name.endswith(".parquet")]
    card = _read_card(root) if "README.md" in names else {}
    return _subsets_of_card(parquet, card) or _subsets_of_names(parquet)


def _choose_subset(dataset: str, subset: str | None, subsets: Sequence[str]) -> str:
    """Return the subset that is asked for, or the only or default one. Raises UserError."""
    if subset:
        if subset in subsets:
            return subset
        problem = "no such subset"
    elif _DEFAULT in subsets:
        return _DEFAULT
    elif len(subsets) == 1:
        return subsets[0]
    else:
        problem = "several subsets"
    listed = ", ".join(map(fields.single_line, subsets))
    raise UserError(
        f"{dataset} has {problem}: pass --set source.hub.subset=NAME, one of {listed}"
        " (import hf: --subset)"
    )


def _read_card(root: ImageRoot) -> Mapping[str, object]:
    """Return the metadata of the README; one that cannot be read has none."""
    try:
        front_matter = _FRONT_MATTER.match(read_text(root.file("README.md"), "card"))
        card = yaml.safe_load(front_matter[1]) if front_matter else None
    except (UserError, yaml.YAMLError, ValueError):
        return {}
    return fields.mapping(card)


def _subsets_of_card(parquet: Sequence[str], card: Mapping[str, object]) -> dict[str, FilesBySplit]:
    """Return the files by subset and split, as patterns of the card's `configs` name them."""
    subsets: dict[str, FilesBySplit] = {}
    for config in map(fields.mapping, fields.as_list(card.get("configs"))):
        for entry in fields.as_list(config.get("data_files")):
            part = entry if isinstance(entry, dict) else {"path": entry}
            matching = _matching(parquet, fields.as_list(part.get("path")))
            if matching:
                splits = subsets.setdefault(str(config.get("config_name") or _DEFAULT), {})
                splits.setdefault(str(part.get("split", "train")), []).extend(matching)
    return subsets


def _matching(names: Sequence[str], paths: Sequence[object]) -> list[str]:
    """Return the names that fit any of the patterns of a card."""
    patterns = [str(path).removeprefix("./").replace("**/", "*") for path in paths]
    return [
        name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]


def _subsets_of_names(parquet: Sequence[str]) -> dict[str, FilesBySplit]:
    """Return the files by subset and split, as their names say."""
    subsets: dict[str, FilesBySplit] = {}
    for name in parquet:
        subset, split = _subset_and_split(name)
        subsets.setdefault(subset, {}).setdefault(split, []).append(name)
    return subsets


def _subset_and_split(name: str) -> tuple[str, str]:
    match = _SHARD.fullmatch(name) or _FOLDER.fullmatch(name)
    if match and match["split"] not in _FOLDERS:
        subset = match["subset"]
        split = match["split"]
    else:
        subset = PurePosixPath(name).parts[0] if "/" in name else _DEFAULT
        split = _split_in_words(name)
        if subset in _SPLIT_NAMES:
            subset = _DEFAULT
    if subset is None or subset in _FOLDERS:
        subset = _DEFAULT
    return subset, split


def _split_in_words(name: str) -> str:
    """Return the split that a word of a name stands for, as `datasets` understands it."""
    for word in re.split(r"[^a-z]+", name.removesuffix(".parquet").lower()):
        if word in _KEYWORDS:
            return _KEYWORDS[word]
    return "train"


@contextmanager
def open_parquet(root: ImageRoot, name: str) -> Iterator[pq.ParquetFile]:
    """Open a file of a dataset.

    Raises:
        UserError: it is not a Parquet file; also while it is read.
    """
    try:
        with pq.ParquetFile(root.open_file(name), pre_buffer=False) as parquet:
            yield parquet
    except StoreError:
        raise
    except (pa.ArrowException, OSError) as error:  # the latter of damaged pages
        raise UserError(f"{name} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
