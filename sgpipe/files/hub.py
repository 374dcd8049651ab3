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

from sgpipe.errors import WEIGHTS, StoreError, UserError, first_line
from sgpipe.utils import console

DATASETS = "hf://datasets/"
_ID = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_SETTINGS = re.compile(r".+\.(json|txt|model|jinja)")
_PREPARES = {
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
}
_PREPARES |= {"vocab.txt"}
_WEIGHTS = tuple(
    map(re.compile, (r"model(-\d+-of-\d+)?\.safetensors", r"pytorch_model(-\d+-of-\d+)?\.bin"))
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
            if constants.HF_HUB_OFFLINE:
                folder = Path(
                    snapshot_download(self.name, repo_type="dataset", revision=self.revision)
                )
                files = [
                    path.relative_to(folder).as_posix()
                    for path in folder.rglob("*")
                    if path.is_file()
                ]
                return HubDataset(self.name, folder.name), sorted(files)
            info = HfApi().dataset_info(self.name, revision=self.revision)
            return HubDataset(self.name, info.sha), sorted(
                each.rfilename for each in info.siblings or ()
            )

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
            HfApi().model_info(
                self.name, revision=self.revision
            )  # fails at once; a download is tried six times
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
            found = try_to_load_from_cache(self.name, "config.json", revision=self.revision)
            return Path(found).parent if isinstance(found, str) else None


def missing_models(names: Sequence[str]) -> list[str]:
    """Return the models of which the hub's cache on this machine lacks weights, or what prepares
    their inputs.
    """
    folders = {name: (HubModel.parse(name) or HubModel(name)).cached() for name in names}
    return [name for name, folder in folders.items() if folder is None or not _is_complete(folder)]


def _is_complete(folder: Path) -> bool:
    files = {path.name for path in folder.iterdir() if path.exists()}  # not broken links
    indices = [folder / file for file in files if file.endswith(".index.json")]
    try:
        shards = [
            set(json.loads(index.read_text("utf-8"))["weight_map"].values()) for index in indices
        ]
    except (ValueError, TypeError, KeyError, AttributeError):  # damaged
        return False
    weights = (
        any(shard <= files for shard in shards)
        or "model.safetensors" in files
        or (not shards and _weights(files))
    )
    return bool(files & _PREPARES and weights)


def find_models(
    names: Sequence[str], command: str = ""
) -> tuple[list[tuple[HubModel, list[list[str]]]], int]:
    """Ask the hub for models: return each with the files that `from_pretrained` reads, weights
    last, and their bytes.

    It takes a request each and loads no model, so a command can begin with it. Raises as
    `fetch_models`.
    """
    from huggingface_hub import HfApi, constants

    wanted: list[tuple[HubModel, list[list[str]]]] = []
    size = 0
    try:
        for name in names:
            model = HubModel.parse(name) or HubModel(name)
            with naming_hub(f"the model {model}"):
                info = HfApi().model_info(model.name, revision=model.revision, files_metadata=True)
            sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
            settings = [file for file in sizes if _SETTINGS.fullmatch(file) and "/" not in file]
            weights = _weights(sizes)
            wanted.append((model, [settings, weights]))
            size += sum(sizes[file] for file in (*settings, *weights))
    except (MissingFileError, StoreError) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else str(error)
        downloads = [f"hf download {name.replace('@', ' --revision ')}" for name in names]
        command = command or " && ".join(downloads)
        raise UserError(
            f"neither a folder nor in the cache {constants.HF_HUB_CACHE}:"
            f" {_without_commits(names)} ({why}); fetch them on a machine with a network by"
            f" `{command}`, and copy its cache here"
        ) from None
    return wanted, size


def _without_commits(names: Sequence[str]) -> str:
    """Return names for people, whom a commit tells nothing."""
    return re.sub(r"@[0-9a-f]{40}\b", "", ", ".join(names))


def fetch_models(names: Sequence[str], command: str = "") -> None:
    """Download what `from_pretrained` reads of models into the hub's cache, after saying which, and
    how large it is.

    Weights come last: a model with weights is complete. `command`: what to run on another machine,
    if not `hf download`. Raises UserError; StoreError.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    wanted, size = find_models(names, command)
    models = _without_commits(names)
    text = f"downloading {models}: about {size / 1e9:,.1f} GB into {constants.HF_HUB_CACHE}"
    console.progress().print(text, soft_wrap=True)
    if console.progress().quiet:
        disable_progress_bars()
    for model, parts in wanted:
        try:
            with naming_hub(f"the model {model}"):
                for part in filter(None, parts):
                    snapshot_download(model.name, revision=model.revision, allow_patterns=part)
        except StoreError as error:
            raise StoreError(f"{error}; the same command resumes the download") from None


def _weights(files: Collection[str]) -> list[str]:
    found = ([file for file in files if pattern.fullmatch(file)] for pattern in _WEIGHTS)
    return next(filter(None, found), [])


@contextmanager
def naming_hub(what: str) -> Iterator[None]:
    """Errors of the hub in one line, which names no token.

    Raises UserError: `what` does not exist (MissingFileError), or not for this user; StoreError:
    the hub fails.
    """
    from huggingface_hub import constants, errors

    try:
        yield
    except (
        errors.GatedRepoError,
        errors.RepositoryNotFoundError,
        errors.LocalTokenNotFoundError,
    ) as error:
        gated = isinstance(error, errors.GatedRepoError)
        why = (
            "is gated: ask for access on its page, then"
            if gated
            else "is not on the hub, or is private:"
        )
        raise UserError(f"{what} {why} {_LOGIN}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            raise MissingFileError(
                f"{what} is not in the hub's cache, and HF_HUB_OFFLINE is set"
            ) from None
        raise StoreError(
            f"{what}: the hub cannot be reached ({first_line(error.__cause__ or error)})"
        ) from None
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError):
        raise MissingFileError(f"{what} does not exist on the hub") from None
    except errors.HFValidationError as error:
        raise UserError(f"{what}: {first_line(error)}") from None
    except (
        errors.HTTPError,
        ConnectionError,
        TimeoutError,
    ) as error:  # of the library that it asks by
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
        if status in (401, 403):
            raise UserError(f"{what}: the hub refuses this user ({status}): {_LOGIN}") from None
        why = f"answers {status}" if status else "cannot be reached"
        raise StoreError(f"{what}: the hub {why} ({first_line(error)})") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StoreError(
                f"{what}: no space is left for it in {constants.HF_HUB_CACHE}"
            ) from None
        raise
    except (
        RuntimeError
    ) as error:  # of uploads, which name a file and not why, and of Xet, the hub's storage
        if type(error) is not RuntimeError:
            raise
        causes = filter(None, (error, error.__cause__))
        raise StoreError(f"{what}: {' '.join(map(first_line, causes))}") from None
