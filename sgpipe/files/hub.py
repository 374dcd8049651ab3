"""What sgpipe asks of the Hugging Face hub: datasets that a user names, and models. huggingface_hub has the tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sgpipe.errors import StoreError, UserError
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
    "vocab.txt",
}
_WEIGHTS = tuple(map(re.compile, (r"model(-\d+-of-\d+)?\.safetensors", r"pytorch_model(-\d+-of-\d+)?\.bin")))


class MissingFileError(UserError):
    """The hub, or without it its cache, has no such file."""


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the hub at a revision; None: the newest."""

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubDataset | None:
        """From USER/NAME, USER/NAME@REVISION or the same after hf://datasets/; None: it is nothing of the kind."""
        name, _, revision = text.removeprefix(DATASETS).strip("/").partition("@")
        return cls(name, revision or None) if _ID.fullmatch(name) else None

    @property
    def uri(self) -> str:
        return f"{DATASETS}{self.name}" + (f"@{self.revision}" if self.revision else "")

    def list(self) -> tuple[HubDataset, list[str]]:
        """The dataset at the commit that its revision is now, and the names of its files.

        Without the hub (HF_HUB_OFFLINE), what its cache has. Raises UserError, StoreError: see `naming_hub`.
        """
        from huggingface_hub import HfApi, constants, snapshot_download

        with naming_hub(f"the dataset {self.name}"):
            if constants.HF_HUB_OFFLINE:
                folder = Path(
                    snapshot_download(self.name, repo_type="dataset", revision=self.revision, local_files_only=True)
                )
                files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
                return HubDataset(self.name, folder.name), sorted(files)
            info = HfApi().dataset_info(self.name, revision=self.revision)
            files = [each.rfilename for each in info.siblings or ()]
            return HubDataset(self.name, info.sha), sorted(files)

    def fetch(self, file: str) -> Path:
        """A file in the hub's cache on this machine, downloaded if it is not there."""
        from huggingface_hub import hf_hub_download

        with naming_hub(f"{file} of the dataset {self.name}"):
            return Path(hf_hub_download(self.name, file, repo_type="dataset", revision=self.revision))


def missing_models(names: Sequence[str]) -> list[str]:
    """Return the models of which the hub's cache on this machine lacks weights, or what prepares their inputs."""
    from huggingface_hub import try_to_load_from_cache

    missing = []
    for name in names:
        with naming_hub(f"the model {name}"):
            config = try_to_load_from_cache(name, "config.json")
        if not isinstance(config, str):
            missing.append(name)
            continue
        folder = Path(config).parent
        files = {path.name for path in folder.iterdir() if path.exists()}  # not broken links
        indices = [folder / file for file in files if file.endswith(".index.json")]
        try:
            shards = [set(json.loads(index.read_text("utf-8"))["weight_map"].values()) for index in indices]
        except (ValueError, TypeError, KeyError, AttributeError):  # damaged
            missing.append(name)
            continue
        sharded = any(shard <= files for shard in shards) if shards else _weights(files)
        if not (files & _PREPARES and (sharded or "model.safetensors" in files)):
            missing.append(name)
    return missing


def fetch_models(names: Sequence[str], command: str) -> None:
    """Download models into the hub's cache: what `from_pretrained` reads, in safetensors where the hub has them.

    Says first which models, how large they are, and where they go. The weights come last, so that a model with weights
    is complete. `command`: how to fetch them on another machine.

    Raises UserError: the hub cannot be asked, or a model is not there, or not for this user; StoreError: it breaks off.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    models, listed = ", ".join(names), {}
    try:
        for name in names:
            with naming_hub(f"the model {name}"):
                siblings = HfApi().model_info(name, files_metadata=True).siblings or ()
            listed[name] = {each.rfilename: each.size or 0 for each in siblings}
    except (MissingFileError, StoreError) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else str(error)
        raise UserError(
            f"not in the cache {constants.HF_HUB_CACHE}: {models} ({why}); fetch them on a machine with a network by "
            f"`{command}`, and copy its cache here"
        ) from None
    wanted = {
        name: [[file for file in files if _SETTINGS.fullmatch(file) and "/" not in file], _weights(files)]
        for name, files in listed.items()
    }
    size = sum(listed[name][file] for name, parts in wanted.items() for part in parts for file in part)
    text = f"downloading {models}: about {size / 1e9:,.1f} GB into {constants.HF_HUB_CACHE}"
    console.progress().print(text, soft_wrap=True)
    if console.progress().quiet:
        disable_progress_bars()
    for name, parts in wanted.items():
        try:
            with naming_hub(f"the model {name}"):
                for part in filter(None, parts):
                    snapshot_download(name, allow_patterns=part)
        except StoreError as error:
            raise StoreError(f"{error}; the same command resumes the download") from None


@contextmanager
def local_models(names: Sequence[str], command: str) -> Iterator[None]:
    """Fetch the models that are missing (see `fetch_models`); then, until the end, load from the cache alone."""
    if not names:
        yield
        return
    from huggingface_hub import constants

    if missing := missing_models(names):
        fetch_models(missing, command)
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _weights(files: Collection[str]) -> list[str]:
    """Return the files with weights that `from_pretrained` reads: the safetensors, or else those of PyTorch."""
    found = ([file for file in files if pattern.fullmatch(file)] for pattern in _WEIGHTS)
    return next(filter(None, found), [])


@contextmanager
def naming_hub(what: str) -> Iterator[None]:
    """Errors of the hub in one line, which names no token.

    Raises UserError: `what` does not exist (MissingFileError), or not for this user; StoreError: the hub cannot be
    reached, or is busy.
    """
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError:
        raise UserError(f"{what} is gated: ask for access on its page on the hub, then {_LOGIN}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{what} is not on the hub, or is private: check the name, or {_LOGIN}") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{what} has no such revision") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            raise MissingFileError(
                f"{what} is not in the hub's cache, and HF_HUB_OFFLINE keeps the hub from being asked"
            ) from None
        raise StoreError(f"{what}: the hub cannot be reached ({_first_line(error.__cause__ or error)})") from None
    except errors.EntryNotFoundError:
        raise MissingFileError(f"{what} does not exist on the hub") from None
    except errors.LocalTokenNotFoundError:
        raise UserError(f"{what} needs an account on the hub: {_LOGIN}") from None
    except errors.HFValidationError as error:
        raise UserError(f"{what}: {_first_line(error)}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(
                f"{what}: the hub refuses this user ({status}): {_LOGIN} to a token that has access"
            ) from None
        raise StoreError(f"{what}: the hub answers {status} ({_first_line(error)})") from None
    except (errors.HTTPError, ConnectionError, TimeoutError) as error:  # of the library that it asks by
        raise StoreError(f"{what}: the hub cannot be reached ({_first_line(error)})") from None
    except RuntimeError as error:  # itself of uploads, which name a file and not why, and of Xet, the hub's storage
        if type(error) is not RuntimeError:
            raise
        why = f" ({_first_line(error.__cause__)})" if error.__cause__ else ""
        raise StoreError(f"{what}: {_first_line(error)}{why}") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
