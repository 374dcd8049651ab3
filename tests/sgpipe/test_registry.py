"""What sgpipe ships is of the public types, under the names that recipes and commands have."""

from inspect import signature
from typing import get_args

import pytest

import sgpipe
from sgpipe.cli import imports
from sgpipe.plugins import load, names_of, reference_of
from sgpipe.recipe import CandidateSource, PairConfig, Recipe, TagConfig
from sgpipe.registry import BUILT_IN, Kind

ROWS = [(kind, name) for kind in get_args(Kind) for name in BUILT_IN[kind]]
PUBLIC = {
    "captioner": "Captioner",
    "format": "Format",
    "source": "Source",
    "stage": "Stage",
    "tagger": "Tagger",
}


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_each_is_found_by_its_name_and_of_the_type_that_users_write(kind: Kind, name: str) -> None:
    reference = reference_of(kind, name)
    assert reference is not None
    assert name in names_of(kind)
    loaded = load(kind, reference)
    expected = getattr(sgpipe, PUBLIC[kind])
    assert isinstance(loaded, expected) or issubclass(loaded, expected)


@pytest.mark.parametrize("name", BUILT_IN["source"])
def test_the_command_of_a_source_declares_its_options(name: str) -> None:
    source = load("source", BUILT_IN["source"][name])
    declared = signature(getattr(imports, name.replace("-", "_"))).parameters
    assert {"data", *(option.name for option in source.options)} == set(declared)


def test_every_choice_of_a_recipe_has_its_stage() -> None:
    sections = list(Recipe().stages.values())
    sections += [PairConfig(candidates=name) for name in get_args(CandidateSource)]
    methods = set(get_args(TagConfig.model_fields["method"].annotation)) - {"auto"}
    sections += [TagConfig(method=method) for method in methods]
    stages = {section.stage for section in sections}
    assert stages | {"caption"} == set(BUILT_IN["stage"])
    assert set(BUILT_IN["tagger"]) <= methods
