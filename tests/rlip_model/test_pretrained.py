"""Folders: saved, loaded and pushed as they are; what is no R-Tagger is told in one line."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import RobertaConfig

from rlip_model.model import ParSeD, ParSeDA, RTagger
from rlip_model.pretrained import CheckpointError
from rlip_model.prune_queries import prune_queries
from tests.rlip_model.conftest import tiny_network
from tests.values import values_of

QUERY_TABLES = {
    ParSeD: ["query_embed"],
    ParSeDA: ["content", "verb_content", "anchors"],
    RTagger: ["verb_content"],
}


def test_values_are_aligned_as_torch_aligns_them(tagger_folder: Path) -> None:
    """In the file they start at odd places, and kernels for those round differently."""
    loaded = RTagger.from_pretrained(tagger_folder)
    assert not any(value.data_ptr() % 64 for value in (*loaded.parameters(), *loaded.buffers()))


def test_folders_of_something_else(tagger_folder: Path, tmp_path: Path) -> None:
    RobertaConfig().save_pretrained(tmp_path / "roberta")
    for name in ("empty", "official", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "official" / "RLIP_PD_v2.pth").touch()
    (tmp_path / "damaged" / "config.json").write_text("{ not json")
    with pytest.raises(
        CheckpointError, match="is not an RLIPv2-ParSeD: its model_type is 'rlip_tagger'"
    ):
        ParSeD.from_pretrained(tagger_folder)
    for name, reason in (
        ("roberta", "model_type is 'roberta', expected 'rlip_tagger'"),
        ("empty", r"expected config\.json, found an empty folder"),
        ("official", r"found RLIP_PD_v2.pth; convert official .pth files with `sgpipe convert`"),
        ("official/RLIP_PD_v2.pth", "found a file; convert official"),
        ("damaged", "no R-Tagger at"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            RTagger.from_pretrained(tmp_path / name)


def test_weights_that_do_not_fit_are_listed(tagger_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tagger_folder, tmp_path / "changed")
    weights = load_file(folder / "model.safetensors")
    del weights["scorer.entity_bias"], weights["label_resizer.fc.bias"]
    weights["nonsense"] = torch.zeros(1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    listed = r"missing label_resizer\.fc\.bias.*missing scorer\.entity_bias.*unknown nonsense"
    with pytest.raises(CheckpointError, match=listed):
        RTagger.from_pretrained(folder)


def test_half_precision_on_disk_is_float32_in_memory_unless_asked(
    tagger: RTagger, tmp_path: Path
) -> None:
    copy.deepcopy(tagger).half().save_pretrained(tmp_path)
    loaded = RTagger.from_pretrained(tmp_path)
    assert set(values_of(loaded.parameters(), "dtype")) == {torch.float32}
    for name, value in loaded.named_parameters():
        assert torch.equal(value, tagger.get_parameter(name).half().float())
    assert (
        RTagger.from_pretrained(tmp_path, dtype="auto").scorer.projection.weight.dtype
        == torch.float16
    )


@pytest.mark.parametrize("kind", QUERY_TABLES)
@pytest.mark.parametrize("pairwise", [True, False])
def test_every_table_is_trimmed(kind: type[ParSeD], pairwise: bool) -> None:
    network = tiny_network(kind)
    trimmed = prune_queries(network, 24, pairwise)
    rows = [*range(12), *range(20, 32)] if pairwise else [*range(24)]
    for table in QUERY_TABLES[kind]:
        before, after = (getattr(model.queries, table).weight for model in (network, trimmed))
        assert torch.equal(after, before[rows])
    if kind is not ParSeDA:
        builders = [
            model.queries.relation_builder.verb_position.weight for model in (network, trimmed)
        ]
        assert torch.equal(builders[1], builders[0][:12])
    assert (trimmed.config.num_pairs, network.config.num_pairs) == (12, 20)
    full_state = network.state_dict()
    smaller = {
        name: value
        for name, value in trimmed.state_dict().items()
        if not name.startswith("queries.")
    }
    assert all(torch.equal(value, full_state[name]) for name, value in smaller.items())


def test_queries_of_proposals_share_one_row() -> None:
    network = tiny_network(ParSeDA, dense_head=True, proposals=8)
    trimmed = prune_queries(network, 24)
    assert trimmed.config.num_queries == 24
    full_state = network.state_dict()
    for name, value in trimmed.state_dict().items():
        assert torch.equal(value, full_state[name])
