"""`sgpipe push`: a run, as `export --to hf` writes it, or a model to the Hugging Face hub.

The same command continues an interrupted upload: huggingface_hub sends only what the hub does not have.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sgpipe.errors import EngineError, StoreError, UserError
from sgpipe.export.card import README
from sgpipe.export.model_card import TAG, model_card
from sgpipe.export.run import HUGGING_FACE, Exported, export_run
from sgpipe.files.hub import naming_hub
from sgpipe.files.model_cache import cache_folder
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import RunFolder
from sgpipe.utils.console import count
from sgpipe.utils.hashing import fingerprint
from sgpipe.utils.locking import only_process

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SHARD = re.compile(r"data/\w+-\d+-of-\d+\.parquet")  # the files of an export, and of other datasets of the hub
_OF_MODEL = re.compile(r"[^/]+\.(json|txt|model|jinja)|model(-\d+-of-\d+)?\.safetensors")
_WEIGHTS = re.compile(r"model[^/]*\.safetensors|[^/]+\.index\.json")  # of a model: what is deleted if it is gone
_STATE = ("training.json", "optimizer.safetensors")  # of a checkpoint, for resuming
_ITS_OWN = (".gitattributes", README)


@dataclass(frozen=True)
class Pushed:
    """A dataset or a model on the hub: its page, its files, and of a run what was exported."""

    url: str
    private: bool
    files: Sequence[str]
    exported: Exported | None = None

    def as_json(self) -> dict[str, Any]:
        exported = self.exported
        kept = {"relations": exported.relations, "left_out": exported.left_out} if exported else {}
        return {"url": self.url, "private": self.private, "files": len(self.files)} | kept


class _Repository:
    """A dataset or a model on the hub, which may be new."""

    def __init__(self, name: str, kind: Literal["dataset", "model"], public: bool) -> None:
        """Raises UserError: nobody is logged in, no such user, or it has files of others."""
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import RepositoryNotFoundError

        if not _REPOSITORY.fullmatch(name):
            raise UserError(f"--to {name}: expected USER/NAME, the id of a {kind} on the hub")
        if get_token() is None:
            raise UserError("push needs an account on the hub: log in with `hf auth login`, or set HF_TOKEN")
        self.name, self.kind, self._api, self._what = name, kind, HfApi(), f"the {kind} {name}"
        with _unfinished(self._what):
            info: Any
            try:
                info = self._api.repo_info(name, repo_type=kind, files_metadata=True)
            except RepositoryNotFoundError:
                self._api.create_repo(name, repo_type=kind, private=not public, exist_ok=True)
                info = self._api.repo_info(name, repo_type=kind, files_metadata=True)
        self.private = bool(info.private)
        self.url = f"{self._api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
        self._before = {each.rfilename: each.size for each in info.siblings or ()}
        is_ours = TAG in {*(info.tags or ()), *((info.card_data and info.card_data.get("tags")) or ())}
        form = _SHARD if kind == "dataset" else _OF_MODEL
        allowed = _ITS_OWN if is_ours or not self._before.get(README) else _ITS_OWN[:1]
        foreign = [file for file in self._before if file not in allowed and not (is_ours and form.fullmatch(file))]
        if foreign:
            named = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
            raise UserError(f"{self._what} has files that sgpipe did not push ({named}); choose another name for --to")

    def upload(self, folder: Path, files: Sequence[str], card: str, of: str) -> None:
        """Send the card first: it shows whose files these are, if the upload is interrupted. Delete what is gone."""
        gone = sorted(self._before.keys() - {*files, *_ITS_OWN})
        if self.kind == "model":  # the others may be its owner's
            gone = [*filter(_WEIGHTS.fullmatch, gone)]
        with _unfinished(self._what):
            repository: dict[str, Any] = {"repo_id": self.name, "repo_type": self.kind}
            repository["commit_message"] = "Add the card"
            self._api.upload_file(path_or_fileobj=card.encode(), path_in_repo=README, **repository)
            repository["commit_message"] = f"Upload {count(len(files), 'file')} of {of}"
            chosen: dict[str, Any] = {"allow_patterns": list(files), "delete_patterns": gone or None}
            self._api.upload_folder(folder_path=folder, **chosen, **repository)


def push_run(root: Path, to: str, *, public: bool = False, **options: Any) -> Pushed:
    """Export the run in `root`, a folder or a store, with the options of `export_run`, and upload it to a dataset.

    Args:
        to: USER/NAME or ORGANISATION/NAME; a new one is private unless `public`.

    Raises:
        UserError: not a run, no such user, or the dataset was not pushed by sgpipe; nothing is uploaded.
        EngineError: the hub cannot be reached any more; the same call continues.
    """
    manifest = Manifest.load(root)
    dataset = _Repository(to, "dataset", public)
    with _exported(manifest, options) as exported:
        files = [file for file in exported.files if file not in _ITS_OWN]
        card = (exported.root / README).read_text(encoding="utf-8").replace("FOLDER_OR_ID", to)
        dataset.upload(exported.root, files, card, "a run of sgpipe")
        return Pushed(dataset.url, dataset.private, exported.files, exported)


def push_model(
    folder: Path, to: str, *, public: bool = False, licence: str | None = None, evaluations: Sequence[Path] = ()
) -> Pushed:
    """Upload the model in `folder` to a model of the hub; see `push_run` and `model_card`.

    Raises UserError also if it has no weights in safetensors.
    """
    files = sorted(file.name for file in folder.iterdir() if _OF_MODEL.fullmatch(file.name) and file.name not in _STATE)
    if not any(file.endswith(".safetensors") for file in files):
        raise UserError(f"{folder} has no model.safetensors: save the model in safetensors, from which no code can run")
    card = model_card(folder, to, licence, evaluations)
    model = _Repository(to, "model", public)
    model.upload(folder, files, card, "a model")
    return Pushed(model.url, model.private, [README, *files])


@contextmanager
def _unfinished(what: str) -> Iterator[None]:
    """Turn an unreachable hub into work that can be finished. Raises UserError: see `naming_hub`."""
    try:
        with naming_hub(what):
            yield
    except StoreError as error:
        raise EngineError(str(error)) from None


@contextmanager
def _exported(manifest: Manifest, options: Mapping[str, Any]) -> Iterator[Exported]:
    """Export a run in its folder, or a run in a store in this machine's cache; delete the files at the end."""
    root = manifest.root
    own = RunFolder(root).private if isinstance(root, Path) else cache_folder() / fingerprint({"run": root.uri})
    place = own / "push"
    place.parent.mkdir(parents=True, exist_ok=True)
    with only_process(place.with_name(f"{place.name}.lock"), place):
        shutil.rmtree(place, ignore_errors=True)
        try:
            yield export_run(root, HUGGING_FACE, place, inside=True, **options)
        finally:
            shutil.rmtree(place, ignore_errors=True)
