"""Which files of a dataset of the hub belong to which split and subset."""

from __future__ import annotations

import pytest

from sgpipe.errors import UserError
from sgpipe.recipe import HubConfig
from sgpipe.sources.hub_files import find_files
from tests.sgpipe.export.hub_stub import COMMIT, answer_at, hub  # noqa: F401 - a fixture
from tests.sgpipe.sources.hub_datasets import (
    touch,
)

CARD_WITH_SUBSETS = """---
configs:
- config_name: first
  data_files: [{split: train, path: a/x*}, {split: held, path: [a/y.parquet]}]
- config_name: second
  data_files: b/*.parquet
---
"""


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], {"train": 2}),
        (
            ["data/val-00000-of-00001-0123456789abcdef.parquet", "test.parquet"],
            {"val": 1, "test": 1},
        ),
        (["default/train/0000.parquet", "default/extra/0000.parquet"], {"train": 1, "extra": 1}),
        (["boxes-a.parquet", "boxes-b.parquet"], {"train": 2}),
        (["dev/part-1.parquet", "train/part-1.parquet"], {"validation": 1, "train": 1}),
    ],
)
def test_splits_by_the_names_of_files(tmp_path, names, splits):
    touch(tmp_path, *names)
    _, files_of_splits = find_files(HubConfig(dataset=str(tmp_path)))
    assert {split: len(files) for split, files in files_of_splits.items()} == splits


def test_splits_and_subsets_of_the_readme(tmp_path):
    touch(tmp_path, "a/x.parquet", "a/y.parquet", "b/x.parquet")
    (tmp_path / "README.md").write_text(CARD_WITH_SUBSETS)
    with pytest.raises(
        UserError,
        match=r"several subsets: pass --set source\.hub\.subset=NAME, one of first, second",
    ):
        find_files(HubConfig(dataset=str(tmp_path)))
    _, first = find_files(HubConfig(dataset=str(tmp_path), subset="first"))
    assert first == {"train": ["a/x.parquet"], "held": ["a/y.parquet"]}
    assert find_files(HubConfig(dataset=str(tmp_path), subset="second"))[1] == {
        "train": ["b/x.parquet"]
    }
    assert list(find_files(HubConfig(dataset=str(tmp_path), subset="first", split="held"))[1]) == [
        "held"
    ]
    with pytest.raises(UserError, match="no split 'test': pass --split train or held"):
        find_files(HubConfig(dataset=str(tmp_path), subset="first", split="test"))
