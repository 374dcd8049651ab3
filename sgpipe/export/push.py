"""`sgpipe push`: a run to the Hugging Face hub, as `export --to hf` writes it, resumably.

The same command continues an interrupted upload: the same run is exported to the same files, of which huggingface_hub
sends only what the hub does not have.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgpipe.errors import EngineError, StoreError, UserError
from sgpipe.export.card import README
from sgpipe.export.run import HUGGING_FACE, Exported, export_run
from sgpipe.files.hub import naming_hub
from sgpipe.files.model_cache import cache_folder
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import RunFolder
from sgpipe.utils.atomic import write_text
from sgpipe.utils.console import count
from sgpipe.utils.hashing import fingerprint
from sgpipe.utils.locking import only_process

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SHARD = re.compile(r"data/\w+-\d+-of-\d+\.parquet")  # the files of an export, and of other datasets of the hub
_ITS_OWN = (".gitattributes", README)
_TAG = "sgpipe"  # in the card of every export
_MOST_NAMED = 3


@dataclass(frozen=True)
class Pushed:
    """A dataset on the hub: its page, and what was exported."""

    url: str
    private: bool
    exported: Exported

    def as_json(self) -> dict[str, Any]:
        kept = ("relations", "left_out")
        values = {name: value for name, value in self.exported.as_json().items() if name in kept}
        return {"url": self.url, "private": self.private, "files": len(self.exported.files), **values}


def push_run(root: Path, to: str, *, public: bool = False, **options: Any) -> Pushed:
    """Export the run in `root`, a folder or a store, and upload it to the dataset `to` of the hub, which may be new.

    Args:
        to: USER/NAME or ORGANISATION/NAME.
        public: who can read a new dataset: everybody, or its owner alone; an existing one stays as it is.
        options: as for `export_run`.

    Raises:
        UserError: not a run, no such user, or the dataset was not pushed by sgpipe; nothing is uploaded.
        EngineError: the hub cannot be reached any more; the same call continues.
    """
    from huggingface_hub import HfApi

    if not _REPOSITORY.fullmatch(to):
        raise UserError(f"--to {to}: expected USER/NAME, the id of a dataset on the hub")
    manifest, api, what = Manifest.load(root), HfApi(), f"the dataset {to}"
    with _unfinished(), naming_hub(what):
        before = _files_there(api, to)
        if before is None:
            api.create_repo(to, repo_type="dataset", private=not public, exist_ok=True)
        private = bool(api.dataset_info(to).private)
    with _exported(manifest, to, options) as exported, _unfinished(), naming_hub(what):
        # The card first: it shows whose files these are, if the upload is interrupted.
        card = exported.root / README
        api.upload_file(
            path_or_fileobj=card, path_in_repo=README, repo_id=to, repo_type="dataset", commit_message="Add the card"
        )
        api.upload_folder(
            repo_id=to,
            folder_path=exported.root,
            repo_type="dataset",
            commit_message=f"Upload {count(len(exported.files), 'file')} of a run of sgpipe",
            delete_patterns=sorted(set(before or ()) - {*exported.files, *_ITS_OWN}) or None,
        )
        return Pushed(f"{api.endpoint}/datasets/{to}", private, exported)


@contextmanager
def _unfinished() -> Iterator[None]:
    """Turn an unreachable hub into work that can be finished."""
    try:
        yield
    except StoreError as error:
        raise EngineError(str(error)) from None


def _files_there(api: HfApi, to: str) -> list[str] | None:
    """The files of the dataset; None: there is none.

    Raises UserError: nobody is logged in, or it has files of others.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if get_token() is None:
        raise UserError("push needs an account on the hub: log in with `hf auth login`, or set HF_TOKEN")
    try:
        info = api.dataset_info(to)
    except RepositoryNotFoundError:
        return None
    files = [each.rfilename for each in info.siblings or ()]
    tags = {*(info.tags or ()), *((info.card_data and info.card_data.get("tags")) or ())}
    foreign = [name for name in files if name not in _ITS_OWN and not (_SHARD.fullmatch(name) and _TAG in tags)]
    if foreign:
        named = ", ".join(foreign[:_MOST_NAMED]) + (", …" if len(foreign) > _MOST_NAMED else "")
        raise UserError(f"the dataset {to} has files that sgpipe did not push ({named}); choose another name for --to")
    return files


@contextmanager
def _exported(manifest: Manifest, to: str, options: Mapping[str, Any]) -> Iterator[Exported]:
    """Export a run in its folder, or a run in a store in this machine's cache; delete the files at the end."""
    root = manifest.root
    own = RunFolder(root).private if isinstance(root, Path) else cache_folder() / fingerprint({"run": root.uri})
    place = own / "push"
    place.parent.mkdir(parents=True, exist_ok=True)
    with only_process(place.with_name(f"{place.name}.lock"), place):
        shutil.rmtree(place, ignore_errors=True)
        try:
            exported = export_run(root, HUGGING_FACE, place, inside=True, **options)
            card = exported.root / README
            write_text(card, card.read_text(encoding="utf-8").replace("FOLDER_OR_ID", to))
            yield exported
        finally:
            shutil.rmtree(place, ignore_errors=True)
