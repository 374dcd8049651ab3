"""The cards of the packaged models have the text that the training would write today."""

import re

import pytest

from experiments.miniworld.cards import CAPTIONER_CARD, NETWORK_CARD, PARSEDA_QUALITY, TAGGER_QUALITY
from sgpipe.recipe import packaged_model

FIGURE = re.compile(r"\{[^}]*\}")


def fixed_parts(template: str) -> list[str]:
    return [part for part in FIGURE.split(template) if part.strip()]


@pytest.mark.parametrize(
    ("name", "templates"),
    [
        ("captioner", [CAPTIONER_CARD]),
        ("tagger", [NETWORK_CARD, TAGGER_QUALITY]),
        ("parseda", [NETWORK_CARD, PARSEDA_QUALITY]),
    ],
)
def test_a_stored_card_has_the_text_of_its_template(name: str, templates: list[str]) -> None:
    card = (packaged_model(name) / "README.md").read_text(encoding="utf-8")
    for template in templates:
        position = 0
        for part in fixed_parts(template):
            position = card.find(part, position)
            assert position >= 0, part
            position += len(part)
