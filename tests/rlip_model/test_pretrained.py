"""Folders: saved and loaded bit for bit; what is no R-Tagger is told in one line."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, RobertaConfig

from rlip_model.config import RTaggerConfig
from rlip_model.model import ParSeD, RTagger
from rlip_model.pretrained import CheckpointError


def test_values_are_aligned_as_torch_aligns_them(tagger_folder: Path) -> None:
    """In the file they start at odd places, and kernels for those round differently."""
    loaded = RTagger.from_pretrained(tagger_folder)
    assert not any(value.data_ptr() % 64 for value in (*loaded.parameters(), *loaded.buffers()))


def test_auto_classes_know_the_networks(tagger_folder: Path) -> None:
    assert isinstance(AutoConfig.from_pretrained(tagger_folder), RTaggerConfig)
    assert isinstance(AutoModel.from_pretrained(tagger_folder), RTagger)


def test_frozen_parameters_stay_frozen(tagger_folder: Path) -> None:
    loaded = RTagger.from_pretrained(tagger_folder)
    fresh = RTagger(loaded.config)
    for (name, ours), theirs in zip(loaded.named_parameters(), fresh.parameters(), strict=True):
        assert ours.requires_grad == theirs.requires_grad, name
    assert not all(parameter.requires_grad for parameter in fresh.parameters())


def changed_copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def test_folders_of_something_else(tagger_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "roberta"
    RobertaConfig().save_pretrained(other)
    with pytest.raises(CheckpointError, match="model_type is 'roberta', expected 'rlip_tagger'"):
        RTagger.from_pretrained(other)
    with pytest.raises(CheckpointError, match="is not an RLIPv2-ParSeD: its model_type is 'rlip_tagger'"):
        ParSeD.from_pretrained(tagger_folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"expected config\.json, found an empty folder"):
        RTagger.from_pretrained(empty)
    (empty / "RLIP_PD_v2.pth").touch()
    with pytest.raises(
        CheckpointError, match=r"found RLIP_PD_v2.pth; convert official .pth files with `sgpipe convert`"
    ):
        RTagger.from_pretrained(empty)
    with pytest.raises(CheckpointError, match="found a file; convert official"):
        RTagger.from_pretrained(empty / "RLIP_PD_v2.pth")
    (other / "config.json").write_text("{ not json")
    with pytest.raises(CheckpointError, match="no R-Tagger at"):
        RTagger.from_pretrained(other)


def test_weights_that_do_not_fit_are_listed(tagger_folder: Path, tmp_path: Path) -> None:
    folder = changed_copy(tagger_folder, tmp_path / "changed")
    weights = load_file(folder / "model.safetensors")
    del weights["scorer.entity_bias"], weights["label_resizer.fc.bias"]
    weights["nonsense"] = torch.zeros(1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        RTagger.from_pretrained(folder)
    for problem in ("missing label_resizer.fc.bias", "missing scorer.entity_bias", "unknown nonsense"):
        assert problem in str(caught.value)


def test_half_precision_on_disk_is_float32_in_memory_unless_asked(tagger: RTagger, tmp_path: Path) -> None:
    copy.deepcopy(tagger).half().save_pretrained(tmp_path)
    loaded = RTagger.from_pretrained(tmp_path)
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    for name, value in loaded.named_parameters():
        assert torch.equal(value, tagger.get_parameter(name).half().float())
    assert RTagger.from_pretrained(tmp_path, dtype="auto").scorer.projection.weight.dtype == torch.float16
