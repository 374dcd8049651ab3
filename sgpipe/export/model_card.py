"""The model card of a network: how to load it, what it was trained on, how good it is. All of it comes from files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from rlip_model.pretrained import CheckpointError
from rlip_model.training.state import Position, read_position
from sgpipe.errors import EngineError, StoreError, UserError
from sgpipe.export.card import README, card_template, certified_text, describe_origin
from sgpipe.files.hub import HubModel
from sgpipe.stats.certify import check
from sgpipe.storage.judgements import CERTIFICATE
from sgpipe.storage.run_files import RunFiles
from sgpipe.training.metrics import MEASURES, read_metrics
from sgpipe.utils.config_file import dump_yaml, parse_yaml, read_yaml

TAG = "sgpipe"  # in the card of everything that sgpipe pushes
_EVALUATION = re.compile(r"\n## Evaluation\n.*?(?=\n## |\Z)", re.DOTALL)


def model_card(folder: Path, to: str, licence: str | None, evaluations: Sequence[Path]) -> str:
    """Return the README.md of a model in `folder`, for the hub, where its id is `to`.

    `evaluations`: files that `sgpipe eval --json-file` wrote. Raises UserError: one of the files is damaged.
    """
    settings, root = _read_json(folder / "config.json"), folder.resolve().parent.parent
    metadata, body = _read_card(folder / README)
    training: dict[str, Any] = {}
    position, rows, parts = Position(), [], []
    if (root / ".training" / "run.json").is_file():
        training = _read_json(root / ".training" / "run.json")
        parts = [_part(part["shards"]) for part in read_yaml(root / "recipe.yaml")["data"]["train"]]
        with suppress(CheckpointError):
            position = read_position(folder)
        rows = [row for row in read_metrics(root) if (row["event"], row["step"]) == ("validation", position.step)]
    if init := training.get("model", {}).get("init"):
        if hub := HubModel.parse(init):
            metadata["base_model"] = hub.name
        training["model"]["init"] = init if hub else Path(init).name
    metadata |= {"license": licence} if licence else {}
    tags = metadata.get("tags") or []
    tags = [*map(str, tags if isinstance(tags, list) else [tags]), TAG, settings.get("model_type", "model")]
    metadata["tags"] = list(dict.fromkeys(tags))
    figures = [("Validation of this checkpoint", {name: row[name] for name in MEASURES if name in row}) for row in rows]
    for file in evaluations:
        result = _read_json(file)
        if not isinstance(summary := result.get("summary") or {}, dict):
            raise UserError(f"{file}: `summary` is not a JSON object; name a file that `sgpipe eval --json-file` wrote")
        figures.append((str(result.get("benchmark", "Evaluation")), summary))
    data = training.pop("data", {})
    return card_template("model.md.jinja").render(
        metadata=dump_yaml(metadata),
        name=to.partition("/")[2],
        auto=next(iter(settings.get("architectures") or ()), "AutoModel"),
        body=_EVALUATION.sub("", body.replace("FOLDER_OR_ID", to)).strip(),
        images=training.pop("images", {}).get("training"),
        recipe=dump_yaml(training | {"data": {name: data[name] for name in data if name not in ("train", "val")}}),
        to=to,
        position=position,
        parts=parts,
        figures=figures,
        licence=metadata.get("license"),
    )


def _part(place: str) -> tuple[str, list[str]]:
    """Return the name of a run that a network was trained on, and how its labels were made, in sentences."""
    try:
        run = RunFiles(place)
    except (UserError, EngineError, StoreError):
        return place.rstrip("/").rpartition("/")[2], ["It was not there when this card was written."]
    images, relations = (sum(s.counts.get(name, 0) for s in run.manifest.shards) for name in ("images", "relations"))
    steps = [f"{images:,} images, {relations:,} relations.", *describe_origin(run.manifest.run)[1]]
    with suppress(UserError, OSError):
        steps.append(certified_text(check(place, run.judgements.with_name(CERTIFICATE), run.judgements)))
    return str(run.manifest.run.get("name", "sgpipe")), steps


def _read_card(file: Path) -> tuple[dict[str, Any], str]:
    """Return the metadata of a README.md, and the text after it; of none, nothing."""
    try:
        front, body = "", file.read_text("utf-8") if file.is_file() else ""
        if body.startswith("---\n"):
            front, _, body = f"{body[3:]}\n".partition("\n---\n")
        return {**(parse_yaml(front) or {})}, body
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read as a card of the hub: {' '.join(str(error).split())}") from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read as a JSON object: {error}") from None
