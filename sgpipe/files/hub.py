"""What sgpipe asks of the Hugging Face hub: datasets that a user names, and models. huggingface_hub
has the tokens.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sgpipe.errors import WEIGHTS, StoreError, UserError, first_line
from sgpipe.utils import console

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

DATASETS = "hf://datasets/"
_ID = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_SETTINGS = re.compile(r".+\.(json|txt|model|jinja)")
_PREPARES = {
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.txt",
}
_WEIGHTS = (  # those that are read first, first
    re.compile(r"model(-\d+-of-\d+)?\.safetensors"),
    re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin"),
)


class MissingFileError(UserError):
    """The hub, or without it its cache, has no such file."""


@dataclass(frozen=True)
class _Repository:
    """Of the hub, at a revision; None: the newest."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


class HubDataset(_Repository):
    @classmethod
    def parse(cls, text: str) -> HubDataset | None:
        """From USER/NAME, USER/NAME@REVISION or the same after hf://datasets/; None: it is nothing
        of the kind.
        """
        name, _, revision = text.removeprefix(DATASETS).strip("/").partition("@")
        return cls(name, revision or None) if _ID.fullmatch(name) else None

    @property
    def uri(self) -> str:
        return f"{DATASETS}{self}"

    def list(self) -> tuple[HubDataset, list[str]]:
        """Return the dataset at its commit, and its files; offline, what the cache has. Raises as
        `naming_hub`.
        """
        from huggingface_hub import HfApi, constants, snapshot_download

        with naming_hub(f"the dataset {self.name}"):
            if not constants.HF_HUB_OFFLINE:
                info = HfApi().dataset_info(self.name, revision=self.revision)
                names = [sibling.rfilename for sibling in info.siblings or ()]
                return HubDataset(self.name, info.sha), sorted(names)
            folder = Path(snapshot_download(self.name, repo_type="dataset", revision=self.revision))
            files = [path for path in folder.rglob("*") if path.is_file()]
            names = [path.relative_to(folder).as_posix() for path in files]
            return HubDataset(self.name, folder.name), sorted(names)

    def fetch(self, file: str) -> Path:
        """Return a file in the hub's cache on this machine, downloaded if it is not there."""
        from huggingface_hub import hf_hub_download

        with naming_hub(f"{file} of the dataset {self.name}"):
            return Path(
                hf_hub_download(self.name, file, repo_type="dataset", revision=self.revision)
            )


class HubModel(_Repository):
    @classmethod
    def parse(cls, text: str) -> HubModel | None:
        """From USER/NAME or USER/NAME@REVISION; None: it is anything else, such as a folder that
        exists.
        """
        name, _, revision = text.partition("@")
        is_id = name.count("/") == 1 and _ID.fullmatch(name) and not name.endswith(WEIGHTS)
        return cls(name, revision or None) if is_id and not Path(text).exists() else None

    def config(self) -> Path:
        """Return its folder in the hub's cache, with config.json at least; the hub is asked only if
        it is not there.
        """
        from huggingface_hub import HfApi, hf_hub_download

        folder = self.cached()
        if folder:
            return folder
        with naming_hub(f"the model {self}"):
            # fails at once; a download is tried six times
            HfApi().model_info(self.name, revision=self.revision)
            return Path(hf_hub_download(self.name, "config.json", revision=self.revision)).parent

    def folder(self) -> Path:
        """Return the same folder, with all files that `from_pretrained` reads, downloaded if they
        are not there.
        """
        folder = self.config()
        if not _is_complete(folder):
            fetch_models([f"{self.name}@{folder.name}"])
        return folder

    def cached(self) -> Path | None:
        """Return its folder in the hub's cache, which may lack files; None: it lacks
        config.json.
        """
        from huggingface_hub import try_to_load_from_cache

        with naming_hub(f"the model {self}"):
            config = try_to_load_from_cache(self.name, "config.json", revision=self.revision)
            return Path(config).parent if isinstance(config, str) else None


def missing_models(names: Sequence[str]) -> list[str]:
    """Return the models of which the hub's cache on this machine lacks weights, or what prepares
    their inputs.
    """
    folders = {name: (HubModel.parse(name) or HubModel(name)).cached() for name in names}
    return [name for name, folder in folders.items() if folder is None or not _is_complete(folder)]


def _is_complete(folder: Path) -> bool:
    files = {path.name for path in folder.iterdir() if path.exists()}  # not broken links
    return not files.isdisjoint(_PREPARES) and _has_weights(folder, files)


def _has_weights(folder: Path, files: Collection[str]) -> bool:
    """Return whether files of a folder are all weights of a model; `index.json` lists their
    parts.
    """
    indexes = [folder / file for file in files if file.endswith(".index.json")]
    try:
        parts = [json.loads(index.read_text("utf-8"))["weight_map"].values() for index in indexes]
        if any(set(names).issubset(files) for names in parts):
            return True
    except (ValueError, TypeError, KeyError, AttributeError):  # damaged
        return False
    return "model.safetensors" in files or (not indexes and bool(_weights(files)))


@dataclass(frozen=True)
class HubFiles:
    """What `from_pretrained` reads of a model.

    Attributes:
        settings, weights: names of files.
        size: of all of them, in bytes.
    """

    model: HubModel
    settings: list[str]
    weights: list[str]
    size: int


def find_models(names: Sequence[str], command: str = "") -> list[HubFiles]:
    """Ask the hub for the files of models.

    It takes a request each and loads no model, so a command can begin with it. Raises as
    `fetch_models`.
    """
    from huggingface_hub import constants

    try:
        return [_find_model(HubModel.parse(name) or HubModel(name)) for name in names]
    except (MissingFileError, StoreError) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else str(error)
        downloads = [f"hf download {name.replace('@', ' --revision ')}" for name in names]
        command = command or " && ".join(downloads)
        raise UserError(
            f"neither a folder nor in the cache {constants.HF_HUB_CACHE}:"
            f" {_without_commits(names)} ({why}); fetch them on a machine with a network by"
            f" `{command}`, and copy its cache here"
        ) from None


def _find_model(model: HubModel) -> HubFiles:
    from huggingface_hub import HfApi

    with naming_hub(f"the model {model}"):
        info = HfApi().model_info(model.name, revision=model.revision, files_metadata=True)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    settings = [file for file in sizes if _SETTINGS.fullmatch(file) and "/" not in file]
    weights = _weights(sizes)
    size = sum(sizes[file] for file in (*settings, *weights))
    return HubFiles(model, settings, weights, size)


def _without_commits(names: Sequence[str]) -> str:
    """Return names for people, whom a commit tells nothing."""
    return re.sub(r"@[0-9a-f]{40}\b", "", ", ".join(names))


def fetch_models(names: Sequence[str], command: str = "") -> None:
    """Download what `from_pretrained` reads of models into the hub's cache, after saying which, and
    how large it is.

    Weights come last: a model with weights is complete. Raises UserError; StoreError.

    Args:
        command: what to run on another machine, if not `hf download`.
    """
    download_models(find_models(names, command))


def download_models(models: Sequence[HubFiles]) -> None:
    """Download models that were found, as `fetch_models`."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    gigabytes = sum(files.size for files in models) / 1e9
    listed = _without_commits([str(files.model) for files in models])
    text = f"downloading {listed}: about {gigabytes:,.1f} GB into {constants.HF_HUB_CACHE}"
    console.progress().print(text, soft_wrap=True)
    if console.progress().quiet:
        disable_progress_bars()
    for files in models:
        model = files.model
        try:
            with naming_hub(f"the model {model}"):
                for part in filter(None, (files.settings, files.weights)):
                    snapshot_download(model.name, revision=model.revision, allow_patterns=part)
        except StoreError as error:
            raise StoreError(f"{error}; the same command resumes the download") from None


def _weights(files: Collection[str]) -> list[str]:
    for pattern in _WEIGHTS:
        matching = [file for file in files if pattern.fullmatch(file)]
        if matching:
            return matching
    return []


@contextmanager
def naming_hub(asked: str) -> Iterator[None]:
    """Errors of the hub in one line, which names no token.

    Raises:
        UserError: what is `asked` for does not exist (MissingFileError), or not for this user.
        StoreError: the hub fails.
    """
    try:
        yield
    except Exception as error:
        explained = _explained(asked, error)
        if explained is None:
            raise
        raise explained from None


def _explained(asked: str, error: Exception) -> UserError | StoreError | None:
    """Return the error in words; None: it is not the hub's."""
    from huggingface_hub import constants, errors

    match error:
        case errors.GatedRepoError():
            return UserError(f"{asked} is gated: ask for access on its page, then {_LOGIN}")
        case errors.RepositoryNotFoundError() | errors.LocalTokenNotFoundError():
            return UserError(f"{asked} is not on the hub, or is private: {_LOGIN}")
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            if constants.HF_HUB_OFFLINE:
                return MissingFileError(
                    f"{asked} is not in the hub's cache, and HF_HUB_OFFLINE is set"
                )
            why = first_line(error.__cause__ or error)
            return StoreError(f"{asked}: the hub cannot be reached ({why})")
        case errors.EntryNotFoundError() | errors.RevisionNotFoundError():
            return MissingFileError(f"{asked} does not exist on the hub")
        case errors.HFValidationError():
            return UserError(f"{asked}: {first_line(error)}")
        case errors.HfHubHTTPError():
            return _refused(asked, error)
        case errors.HTTPError() | ConnectionError() | TimeoutError():  # of what it asks by
            return StoreError(f"{asked}: the hub cannot be reached ({first_line(error)})")
        case OSError(errno=errno.ENOSPC):
            return StoreError(f"{asked}: no space is left for it in {constants.HF_HUB_CACHE}")
    if type(error) is RuntimeError:  # of uploads, which name no reason, and of the hub's storage
        causes = filter(None, (error, error.__cause__))
        return StoreError(f"{asked}: {' '.join(map(first_line, causes))}")
    return None


def _refused(asked: str, error: HfHubHTTPError) -> UserError | StoreError:
    status = error.response.status_code
    if status in (401, 403):
        return UserError(f"{asked}: the hub refuses this user ({status}): {_LOGIN}")
    return StoreError(f"{asked}: the hub answers {status} ({first_line(error)})")
