"""Reference folders of the network: their options, weights and inputs; and reports of how ours
differ from them.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import RobertaConfig

from rlip_model.checkpoint import build_model, load_official
from rlip_model.model import RLIPModel
from rlip_model.official import infer_config
from rlip_model.queries import GivenPairs
from rlip_model.targets import Triplets
from tests.parity.seeded import seeded_state

BASE = "base.json"


class NotGoldenError(Exception):
    """A folder that is not of the form of the reference folders."""


BROKEN = (
    NotGoldenError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    SafetensorError,
)


@dataclass
class Golden:
    """One folder. `small`: reduced sizes with stored weights; else paper size with name-seeded
    weights.
    """

    folder: Path
    meta: dict[str, Any]
    options: dict[str, Any]
    small: bool
    inputs: dict[str, Tensor]

    @property
    def num_objects(self) -> int:
        return len(self.meta["obj_texts"])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a file of the folder; none if there is no such file."""
        return _tensors(self.folder, name)

    def pairs(
        self, prefix: str = "targets_a.", tensors: dict[str, Tensor] | None = None
    ) -> list[GivenPairs]:
        """The target pairs of every image of the batch."""
        tensors_of_pairs = self.inputs if tensors is None else tensors
        pairs: list[GivenPairs] = []
        while f"{prefix}{len(pairs)}.sub_boxes" in tensors_of_pairs:
            image = f"{prefix}{len(pairs)}."
            names = ("sub_boxes", "obj_boxes", "sub_labels", "obj_labels")
            pairs.append(GivenPairs(*(tensors_of_pairs[image + name] for name in names)))
        return pairs

    def triplets(self, prefix: str = "targets_a.") -> list[Triplets]:
        """The target pairs of every image with their relations."""
        return [
            Triplets(**vars(pairs), relation_labels=self.inputs[f"{prefix}{image}.verb_labels"])
            for image, pairs in enumerate(self.pairs(prefix))
        ]

    def json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file of the folder; empty if there is no such file."""
        path = self.folder / name
        return json.loads(path.read_text()) if path.is_file() else {}

    def build(self) -> RLIPModel:
        """The network that the options and the weights describe, in evaluation mode."""
        state = self._state()
        model = build_model(infer_config(state, self.options, text_config=self._text_config()))
        load_official(model, state)
        return model.eval()

    def _state(self) -> dict[str, Tensor]:
        if self.small:
            return {
                key: value.float() for key, value in self.tensors("weights.safetensors").items()
            }
        keys = (
            "keys_swint.json"
            if str(self.options.get("backbone")).startswith("swin")
            else "keys_r50.json"
        )
        state = seeded_state(
            json.loads((self.folder.parent / keys).read_text()), int(self.options["dec_layers"])
        )
        for key, (total, magnitude) in self.meta.get("probe", {}).items():
            sums = (float(state[key].sum()), float(state[key].abs().sum()))
            if abs(sums[0] - total) > 0.01 or abs(sums[1] - magnitude) > 1e-4 * magnitude + 0.01:
                raise NotGoldenError(
                    f"the seeded weight {key} is not the one the folder was made with"
                )
        return state

    def _text_config(self) -> RobertaConfig | None:
        path = self.folder.parent.parent / "roberta_small" / "config.json"
        return (
            RobertaConfig(**json.loads(path.read_text())) if self.small and path.is_file() else None
        )


def open_golden(folder: Path) -> Golden:
    """Raises NotGoldenError or another error of `BROKEN`."""
    for name in ("meta.json", "outputs_raw_text.safetensors"):
        if not (folder / name).is_file():
            raise NotGoldenError(f"{folder} is not a reference folder: it has no {name}")
    meta = json.loads((folder / "meta.json").read_text())
    small = (folder / "weights.safetensors").is_file()
    return Golden(
        folder, meta, parse_flags(meta["flags"]), small, _tensors(folder, "inputs.safetensors")
    )


def parse_flags(flags: str) -> dict[str, Any]:
    """`--name value` and `--name` of a command line; what comes later wins."""
    options: dict[str, Any] = {"fusion_last_vis": False, "subject_class": False, "dropout": 0.1}
    options.update(gating_mechanism="GLIP", verb_query_tgt_type="vanilla")
    name = ""
    for word in shlex.split(flags):
        if word.startswith("--"):
            name = word[2:]
            options[name] = True
        else:
            options[name] = word
    return options


def _tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a file, and those of the folder that base.json names but for what it lists as
    `without`.
    """
    loaded: dict[str, Tensor] = {}
    if (folder / BASE).is_file():
        base = json.loads((folder / BASE).read_text())
        if name in base["without"]:
            shared = load_file(folder / base["folder"] / name)
            loaded = {
                key: value for key, value in shared.items() if key not in base["without"][name]
            }
    path = folder / name
    return loaded | (load_file(path) if path.is_file() else {})


@dataclass(frozen=True)
class Row:
    section: str
    name: str
    difference: float
    tolerance: float
    within: bool


@dataclass
class Report:
    """Largest differences, a row per tensor; at paper size the tolerance grows with the value.
    `skipped`: why what.
    """

    small: bool
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def compare(self, section: str, name: str, actual: Tensor, expected: Tensor) -> None:
        """NaN in `expected` (groups without pairs) is not compared; NaN in `found` never passes."""
        if actual.shape != expected.shape:
            self.rows.append(Row(section, f"{name} {list(actual.shape)}", float("inf"), 0.0, False))
            return
        tolerance = self._tolerance(name)
        known = (
            ~expected.isnan()
            if expected.is_floating_point()
            else torch.ones_like(expected, dtype=torch.bool)
        )
        actual = actual[known].double()
        expected = expected[known].double()
        difference = (actual - expected).abs()
        allowed = tolerance + (0.0 if self.small else tolerance) * expected.abs()
        largest = float(difference.max()) if difference.numel() else 0.0
        self.rows.append(
            Row(section, name, largest, tolerance, bool((difference <= allowed).all()))
        )

    def compare_number(
        self,
        section: str,
        name: str,
        actual: Tensor,
        expected: float,
        tolerance: float,
        zero: float = 0.0,
    ) -> None:
        """Relative difference; two values that are both not above `zero` are equal."""
        value = float(actual.detach())
        difference = 0.0 if max(abs(value), abs(expected)) <= zero else abs(value - expected)
        relative = difference / abs(expected) if expected else difference
        self.rows.append(Row(section, name, relative, tolerance, relative <= tolerance))

    def require(self, section: str, name: str, holds: bool) -> None:
        """A row for something that is right or wrong, without measure."""
        self.rows.append(Row(section, name, 0.0 if holds else float("inf"), 0.0, holds))

    def _tolerance(self, name: str) -> float:
        if "boxes" in name or "refs" in name:
            return 1e-5 if self.small else 1e-4
        return 1e-4 if self.small else 1e-3

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if not row.within]


def compare_folders(command: str, check: Callable[[Path], Report], arguments: Sequence[str]) -> int:
    """Print the reports; the exit code is 0: within tolerance, 1: not, listed at the end, 2: no
    reference folder.
    """
    several = command == "model"
    if not arguments or arguments[0].startswith("-") or (len(arguments) > 1 and not several):
        print(
            f"usage: python -m tests.parity.{command} FOLDER{' [FOLDER ...]' * several}",
            file=sys.stderr,
        )
        return 2
    failed = []
    for folder in map(Path, arguments):
        try:
            report = check(folder)
        except BROKEN as reason:
            known = isinstance(reason, NotGoldenError)
            print(
                reason if known else f"{folder} is not of the known form: {reason!r}",
                file=sys.stderr,
            )
            return 2
        print(folder)
        for row in report.rows:
            mark = "ok" if row.within else "FAIL"
            print(
                f"  {mark:4} {row.difference:9.2e} (<= {row.tolerance:.0e})  {row.section}:"
                f" {row.name}"
            )
        for place in report.skipped:
            print(f"  not compared: {place}")
        for row in report.failed:
            name = f"{row.section}: {row.name}"
            failed.append(f"{folder}: {name} ({row.difference:.2e})" if several else name)
    if failed:
        print("outside tolerance:\n  " + "\n  ".join(failed))
    return int(bool(failed))
