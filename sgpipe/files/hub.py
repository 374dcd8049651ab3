"""What sgpipe asks of the Hugging Face hub, only if a user names a dataset there. huggingface_hub has the tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sgpipe.errors import StoreError, UserError

DATASETS = "hf://datasets/"
_ID = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


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
