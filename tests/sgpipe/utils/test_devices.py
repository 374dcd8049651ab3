import pytest
import torch

from sgpipe.errors import UserError
from sgpipe.utils.devices import pick_device, pick_dtype


def test_auto_takes_a_gpu_if_there_is_one(monkeypatch):
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert pick_device("auto").type == ("cuda" if there else "cpu")


def test_numbered_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert pick_device("cuda") == torch.device("cuda")
    with pytest.raises(UserError, match="'cuda:2': PyTorch sees 2 GPUs"):
        pick_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="PyTorch sees 1 GPU here"):
        pick_device("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "mps", "meta"])
def test_other_words_are_refused(name):
    with pytest.raises(UserError, match="expected auto, cpu, cuda or cuda:N"):
        pick_device(name)


def test_dtypes(monkeypatch):
    assert pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    for able in (False, True):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able: able)
        assert pick_dtype("auto", torch.device("cuda")) == (torch.bfloat16 if able else torch.float32)
        assert pick_dtype("float32", torch.device("cuda")) == torch.float32
