"""Load and save a network with its tokenizer and a model card, in the folder layout of
transformers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlip_model.config import RLIPConfig
from rlip_model.text import TokenizerError, load_tokenizer

ALIGNMENT = 64  # bytes; the alignment of torch's own allocations on a CPU
Model = TypeVar("Model", bound="RLIPPreTrainedModel")

_MODEL_CARD = """\
---
library_name: transformers
pipeline_tag: object-detection
tags: [rlipv2, scene-graph-generation, human-object-interaction, {model_type}]
---

# {title}

A network of RLIPv2 (Yuan et al., ICCV 2023): {parameters:,} parameters, backbone {backbone}, {queries} queries.
{use}

```python
import rlip_model  # of `pip install sgpipe`; no code is downloaded
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER_OR_ID")
```

## Evaluation

Not evaluated yet. Before you publish this network, add its results, the data it was trained on, and its licence.
"""
_TAGGER_USE = (
    "It labels the relations of given pairs of boxes: `sgpipe generate --tagger FOLDER_OR_ID`."
)
_DETECTOR_USE = (
    "It detects pairs of objects and their relations: `sgpipe predict FOLDER --data SHARDS`."
)

_MAX_NAMES = 8  # of files that a message lists
_OF_THE_HUB = {"revision", "token", "cache_dir", "local_files_only", "force_download"}
# Raised by transformers and safetensors for files that are missing, damaged or of another model.
_UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    StrictDataclassError,
    SafetensorError,
)


class CheckpointError(ValueError):
    """A file or folder does not contain the expected network; the message says what it contains."""


class RLIPPreTrainedModel(PreTrainedModel):
    """A network that is saved and loaded as config.json, model.safetensors and tokenizer files."""

    config_class: type[RLIPConfig] = RLIPConfig
    config: RLIPConfig
    base_model_prefix = ""
    title: ClassVar[str] = "RLIP model"
    tokenizer: PreTrainedTokenizerBase | None = None

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: every module initialises its own parameters."""

    @classmethod
    def check(cls, name: str) -> None:
        """Read only the configuration.

        Raises:
            CheckpointError: there is no network, or one of another kind.
        """
        _check_kind(name, cls)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Model:
        """Load a network and its tokenizer from a folder or hub id; in float32 unless `dtype` is
        given.

        Weights are read from safetensors alone. With `output_loading_info`, a pair, as transformers
        returns it.

        Raises:
            CheckpointError: there is no network, a network of another kind, or weights that do not
                fit.
            TokenizerError: its tokenizer is missing or has no vocabulary.
        """
        name = str(pretrained_model_name_or_path)
        kwargs.setdefault("dtype", torch.float32)
        where = {key: kwargs[key] for key in _OF_THE_HUB & kwargs.keys()}
        _check_kind(name, cls, **where)
        kwargs |= {"output_loading_info": True, "use_safetensors": True}
        try:
            loaded = super().from_pretrained(name, *args, **kwargs)
        except _UNREADABLE as reason:
            raise CheckpointError(
                f"cannot load {cls.title} from {name}: {_first_line(reason)}"
            ) from reason
        model, info = cast(tuple[Model, dict[str, Any]], loaded)
        _check_keys(name, info["missing_keys"], info["unexpected_keys"])
        _align(model)
        model.freeze()
        model.set_tokenizer(load_tokenizer(name, **where))
        return cast(Model, (model, info)) if output_loading_info else model

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """Write config.json, model.safetensors, the files of the tokenizer, and a model card unless
        there is one.
        """
        super().save_pretrained(save_directory, **kwargs)
        card = Path(save_directory) / "README.md"
        if not card.exists():
            card.write_text(self._model_card(), encoding="utf-8")
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)

    def _model_card(self) -> str:
        """Return the README.md that the Hugging Face hub shows for a saved network."""
        return _MODEL_CARD.format(
            name=type(self).__name__,
            title=self.title,
            model_type=self.config.model_type,
            parameters=self.num_parameters(),
            backbone=self.config.backbone,
            queries=self.config.num_queries,
            use=_TAGGER_USE if self.config.model_type == "rlip_tagger" else _DETECTOR_USE,
        )

    def freeze(self) -> None:
        """Freeze the parameters that are never trained. Called after loading."""

    def set_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Set the tokenizer; its ids must fit the text encoder.

        Raises:
            TokenizerError: it has more tokens than the text encoder.
        """
        vocabulary = self.config.text_config.vocab_size
        if len(tokenizer) > vocabulary:
            raise TokenizerError(
                f"the tokenizer has {len(tokenizer)} tokens, the text encoder {vocabulary}"
            )
        self.tokenizer = tokenizer


def _align(model: nn.Module) -> None:
    """Copy values that are not aligned in the mapped file to memory allocated by torch.

    Some CPU kernels round differently at other alignments. A loaded network must equal the saved
    one bit for bit.
    """
    for value in (*model.parameters(), *model.buffers()):
        if value.device.type == "cpu" and value.data_ptr() % ALIGNMENT:
            value.data = value.data.clone()


def _check_kind(name: str, model: type[RLIPPreTrainedModel], **where: Any) -> None:
    expected = model.config_class.model_type
    folder = Path(name)
    if folder.exists() and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{name} is not an {model.title} folder: expected config.json, found {_content(folder)}"
        )
    try:
        config, _ = PretrainedConfig.get_config_dict(name, **where)
    except (OSError, ValueError) as reason:
        raise CheckpointError(f"no {model.title} at {name}: {_first_line(reason)}") from reason
    kind = config.get("model_type", "no model_type") if isinstance(config, dict) else "no settings"
    if kind != expected:
        raise CheckpointError(
            f"{name} is not an {model.title}: its model_type is {kind!r}, expected {expected!r}"
        )


def _first_line(reason: Exception) -> str:
    return str(reason).strip().split("\n")[0]


def _content(path: Path) -> str:
    """Say what is at a path, and how to convert it if it is a checkpoint."""
    names = ["a file"] if path.is_file() else sorted(entry.name for entry in path.iterdir())
    content = ", ".join(names[:_MAX_NAMES]) or "an empty folder"
    if len(names) > _MAX_NAMES:
        content += " ..."
    if path.suffix in (".pth", ".pt") or any(path.glob("*.pth")):
        content += "; convert official .pth files with `sgpipe convert`"
    return content


def _check_keys(name: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    problems = [f"missing {key}" for key in sorted(missing)]
    problems += [f"unknown {key}" for key in sorted(unexpected)]
    if problems:
        raise CheckpointError(
            f"the weights in {name} do not fit its config.json: " + ", ".join(problems)
        )
