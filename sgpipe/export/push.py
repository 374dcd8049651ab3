"""`sgpipe push`: a run, as `export --to hf` writes it, or a model with its card, to the Hugging
Face hub.

The same command continues an interrupted upload: huggingface_hub sends only what the hub does not
have.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rlip_model.pretrained import CheckpointError
from rlip_model.training.state import Position, read_position
from sgpipe.errors import EngineError, StoreError, UserError
from sgpipe.export.hugging_face import README, card_template, certified_text, describe_origin
from sgpipe.export.run import Exported, export_run
from sgpipe.files.hub import HubModel, naming_hub
from sgpipe.files.locations import Location
from sgpipe.stats.certify import check
from sgpipe.storage.datasets import load_manifest, open_files
from sgpipe.training.metrics import MEASURES, read_metrics
from sgpipe.utils.atomic import temporary_folder
from sgpipe.utils.config_file import dump_yaml, parse_yaml, read_yaml
from sgpipe.utils.console import count

_Figures: TypeAlias = tuple[str, Mapping[str, object]]  # of an evaluation, by its title

TAG = "sgpipe"  # in the card of everything that sgpipe pushes
# of cards that are pushed again
_OURS = re.compile(r"\n## (Training|Evaluation|Licence)\n.*?(?=\n## |\Z)", re.DOTALL)
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# the files of an export, and of other datasets of the hub
_SHARD = re.compile(r"data/\w+-\d+-of-\d+\.parquet")
_OF_MODEL = re.compile(r"[^/]+\.(json|txt|model|jinja)|model(-\d+-of-\d+)?\.safetensors")
# of a model: what is deleted if it is gone
_WEIGHTS = re.compile(r"model[^/]*\.safetensors|[^/]+\.index\.json")
_STATE = ("training.json", "optimizer.safetensors")  # of a checkpoint, for resuming
_OF_HUB = ".gitattributes"
_ITS_OWN = (_OF_HUB, README)


@dataclass
class _Training:
    """What is known of the training of a model.

    Attributes:
        run: the header of the training, as it wrote it.
        parts: the runs that the model was trained on, and how their labels were made.
    """

    run: dict[str, Any] = field(default_factory=dict)
    parts: list[tuple[str, list[str]]] = field(default_factory=list)
    position: Position = field(default_factory=Position)
    figures: list[_Figures] = field(default_factory=list)


def model_card(folder: Path, to: str, licence: str | None, evaluations: Sequence[Path]) -> str:
    """Return the README.md of a model in `folder`, for the hub, where its id is `to`.

    Args:
        evaluations: files that `sgpipe eval --json-file` wrote.

    Raises:
        UserError: one of the files is damaged.
    """
    settings = _read_json(folder / "config.json")
    metadata, body = _read_card(folder / README)
    training = _read_training(folder)
    if licence:
        metadata["license"] = licence
    metadata["tags"] = _tags(metadata.get("tags"), settings.get("model_type", "model"))
    init = training.run.get("model", {}).get("init")
    if init:
        hub = HubModel.parse(init)
        if hub:
            metadata["base_model"] = hub.name
        training.run["model"]["init"] = init if hub else Path(init).name
    evaluated = [_evaluation(file) for file in evaluations]
    data = training.run.pop("data", {})
    data = {name: value for name, value in data.items() if name not in ("train", "val")}
    body = _without_ours(body.replace("FOLDER_OR_ID", to), is_trained=bool(training.parts))
    return card_template("model.md.jinja").render(
        metadata=dump_yaml(metadata),
        name=to.partition("/")[2],
        auto=next(iter(settings.get("architectures") or ()), "AutoModel"),
        body=body,
        kept={section[1] for section in _OURS.finditer(body)},
        images=training.run.pop("images", {}).get("training"),
        recipe=dump_yaml(training.run | {"data": data}),
        to=to,
        position=training.position,
        parts=training.parts,
        figures=[*training.figures, *evaluated],
        licence=metadata.get("license"),
    )


def _read_training(folder: Path) -> _Training:
    root = folder.resolve().parent.parent
    training = _Training()
    header = root / ".training" / "run.json"
    if not header.is_file():
        return training
    training.run = _read_json(header)
    for part in read_yaml(root / "recipe.yaml")["data"]["train"]:
        training.parts.append(_part(part["shards"]))
    with suppress(CheckpointError):
        training.position = read_position(folder)
    for row in read_metrics(root):
        if (row["event"], row["step"]) == ("validation", training.position.step):
            measured = {name: row[name] for name in MEASURES if name in row}
            training.figures.append(("Validation of this checkpoint", measured))
    return training


def _tags(tags: object, model_type: str) -> list[str]:
    """Return the tags of a card, and ours."""
    listed = tags if isinstance(tags, list) else [tags] if tags else []
    return list(dict.fromkeys([*map(str, listed), TAG, model_type]))


def _evaluation(file: Path) -> _Figures:
    result = _read_json(file)
    summary = result.get("summary") or {}
    if not isinstance(summary, dict):
        raise UserError(
            f"{file}: `summary` is not a JSON object; name a file that `sgpipe eval"
            " --json-file` wrote"
        )
    return str(result.get("benchmark", "Evaluation")), summary


def _without_ours(body: str, *, is_trained: bool) -> str:
    """Return the body of a card without the sections that are written again."""
    rewritten = {"Evaluation"}
    if is_trained:
        rewritten.add("Training")
    if "licences of their own" in body:
        rewritten.add("Licence")
    return _OURS.sub(lambda section: "" if section[1] in rewritten else section[0], body).strip()


def _part(place: str) -> tuple[str, list[str]]:
    """Return the name of a run that a network was trained on, and how its labels were made, in
    sentences.
    """
    try:
        run = open_files(place)
    except (UserError, EngineError, StoreError):
        return place.rstrip("/").rpartition("/")[2], [
            "It was not there when this card was written."
        ]
    totals = Counter[str]()
    for shard in run.manifest.shards:
        totals.update(shard.counts)
    reviewed = False
    certified = []
    with suppress(UserError, OSError):
        reviewed = run.judgements.is_file()
        certified = [certified_text(check(place, run.judgements).as_json())]
    steps = [
        f"{totals['images']:,} images, {totals['relations']:,} relations.",
        *describe_origin(run.manifest.run, reviewed)[1],
    ]
    return str(run.manifest.run.get("name", "sgpipe")), [*steps, *certified]


def _read_card(file: Path) -> tuple[dict[str, Any], str]:
    try:
        front = ""
        body = file.read_text("utf-8") if file.is_file() else ""
        if body.startswith("---\n"):
            front, _, body = f"{body[3:]}\n".partition("\n---\n")
        return {**(parse_yaml(front) or {})}, body
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read as a card of the hub: {error}") from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read as a JSON object: {error}") from None


@dataclass(frozen=True)
class Pushed:
    """A dataset or a model on the hub: its page, its files, and of a run what was exported."""

    url: str
    private: bool
    files: Sequence[str]
    exported: Exported | None = None

    def as_json(self) -> dict[str, object]:
        content: dict[str, object] = {
            "url": self.url,
            "private": self.private,
            "files": len(self.files),
        }
        if self.exported:
            content["relations"] = self.exported.relations
            content["left_out"] = self.exported.left_out
        return content


def _check_account(name: str, kind: str) -> None:
    from huggingface_hub import constants, get_token

    if not _REPOSITORY.fullmatch(name):
        raise UserError(f"--to {name}: expected USER/NAME, the id of a {kind} on the hub")
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            "push sends files to the hub, and HF_HUB_OFFLINE is set: unset it, and push again"
        )
    if get_token() is None:
        raise UserError(
            "push needs an account on the hub: log in with `hf auth login`, or set HF_TOKEN"
        )


class _Repository:
    """A dataset or a model on the hub, which may be new."""

    def __init__(self, name: str, kind: Literal["dataset", "model"], public: bool) -> None:
        """Find a repository that this user may push to, or create it.

        Raises:
            UserError: HF_HUB_OFFLINE is set, nobody is logged in, no such user, or it has files of
                others.
        """
        from huggingface_hub import HfApi

        _check_account(name, kind)
        self.name = name
        self.kind = kind
        self._api = HfApi()
        self._what = f"the {kind} {name}"
        with naming_hub(self._what):
            if not self._api.repo_exists(name, repo_type=kind):
                self._api.create_repo(name, repo_type=kind, private=not public, exist_ok=True)
            info: Any = self._api.repo_info(name, repo_type=kind, files_metadata=True)
        self.private = bool(info.private)
        self.url = f"{self._api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
        self._before = {file.rfilename: file.size for file in info.siblings or ()}
        tags_of_card = (info.card_data or {}).get("tags") or ()
        self._check_files(is_ours=TAG in {*(info.tags or ()), *tags_of_card})

    def _check_files(self, *, is_ours: bool) -> None:
        """Check that the repository has only files that sgpipe pushed.

        Raises:
            UserError: it has files that sgpipe did not push.
        """
        foreign = self._before.keys() - {_OF_HUB}
        if is_ours:
            form = _SHARD if self.kind == "dataset" else _OF_MODEL
            foreign = {file for file in foreign - {README} if not form.fullmatch(file)}
        elif not self._before.get(README):  # an empty one, which the hub made
            foreign -= {README}
        if foreign:
            listed = [file for file in self._before if file in foreign]
            named = ", ".join(listed[:3]) + (", …" if len(listed) > 3 else "")
            raise UserError(
                f"{self._what} has files that sgpipe did not push ({named}); choose another name"
                " for --to"
            )

    def upload(self, folder: Path, files: Sequence[str], card: str, origin: str) -> None:
        """Send the card first: it shows whose files these are, if the upload is interrupted. Delete
        what is gone.
        """
        gone = sorted(self._before.keys() - {*files, *_ITS_OWN})
        if self.kind == "model":  # the others may be its owner's
            gone = list(filter(_WEIGHTS.fullmatch, gone))
        with naming_hub(self._what):
            self._api.upload_file(
                path_or_fileobj=card.encode(),
                path_in_repo=README,
                repo_id=self.name,
                repo_type=self.kind,
                commit_message="Add the card",
            )
            self._api.upload_folder(
                folder_path=folder,
                repo_id=self.name,
                repo_type=self.kind,
                commit_message=f"Upload {count(len(files), 'file')} of {origin}",
                allow_patterns=list(files),
                delete_patterns=gone or None,
            )


def push_run(root: Location, to: str, *, public: bool = False, **options: Any) -> Pushed:
    """Export the run in `root` with the options of `export_run`, and upload it to a dataset, if new
    a private one.

    Raises:
        UserError: not a run, no such user, or the dataset was not pushed by sgpipe.
        StoreError: the hub cannot be reached any more; the same call continues.
    """
    load_manifest(root)
    dataset = _Repository(to, "dataset", public)
    # The system's folder may be small.
    with temporary_folder(open_files(root).cache) as folder:
        exported = export_run(root, "hf", folder / "push", inside=True, **options)
        files = [file for file in exported.files if file not in _ITS_OWN]
        card = (exported.root / README).read_text(encoding="utf-8").replace("FOLDER_OR_ID", to)
        dataset.upload(exported.root, files, card, "a run of sgpipe")
        return Pushed(dataset.url, dataset.private, exported.files, exported)


def push_model(
    folder: Path,
    to: str,
    *,
    public: bool = False,
    licence: str | None = None,
    evaluations: Sequence[Path] = (),
) -> Pushed:
    """Upload the model in `folder`, which has weights in safetensors; see `push_run` and
    `model_card`.
    """
    names = {file.name for file in folder.iterdir()}
    files = sorted(filter(_OF_MODEL.fullmatch, names.difference(_STATE)))
    if not any(file.endswith(".safetensors") for file in files):
        raise UserError(
            f"{folder} has no model.safetensors: save the model in safetensors, from which no code"
            " can run"
        )
    card = model_card(folder, to, licence, evaluations)
    model = _Repository(to, "model", public)
    model.upload(folder, files, card, "a model")
    return Pushed(model.url, model.private, [README, *files])
