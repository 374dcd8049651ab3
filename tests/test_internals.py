"""docs/internals.md and rlip_model/README.md lead to files and names that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("docs/internals.md", "rlip_model/README.md")
TEXT = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
CODE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "rlip_model").rglob("*.py"))
FILES = sorted(set(re.findall(r"`(rlip_model/[\w/]+\.py)`", TEXT)))
NAMES_IN_FILES = re.findall(r"((?:`\w+`, )*`\w+`) in `(rlip_model/[\w/]+\.py)`", TEXT)


def test_enough_is_named() -> None:
    assert len(FILES) > 15
    assert len(NAMES_IN_FILES) > 10


@pytest.mark.parametrize("file", FILES)
def test_files_exist(file: str) -> None:
    assert (ROOT / file).is_file()


@pytest.mark.parametrize(("names", "file"), NAMES_IN_FILES)
def test_names_are_where_they_are_said_to_be(names: str, file: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8")
    for name in re.findall(r"`(\w+)`", names):
        assert re.search(rf"^(class|def) {name}\b", source, re.MULTILINE), name


def test_every_class_that_is_named_exists() -> None:
    """Names in the first column of the page's own tables may be those of the published code."""
    ours = {name for row in TEXT.splitlines() if row.startswith("|") for name in re.findall(r"`([A-Z]\w+)[`.(]", row)}
    published = {"HungarianMatcherHOI", "SetCriterionHOI", "PostProcessHOI", "PostProcessSGG", "MSDeformAttn"}
    published |= {"VLFuse_layers", "VXAc"}
    assert {name for name in ours - published if not re.search(rf"\b{name}\b", CODE)} == set()
