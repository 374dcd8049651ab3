"""Which Parquet files a dataset in the hub's form has, by subset and split, as its README or their names tell."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import yaml

from sgpipe.errors import UserError
from sgpipe.files.hub import DATASETS, HubDataset
from sgpipe.files.object_store import StorePath, is_uri
from sgpipe.hub_config import HubConfig
from sgpipe.sources.annotated import to_single_line

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
