"""The spaCy model, loaded once for all tests of the grammar."""

from collections.abc import Callable

import pytest

from sgpipe.stages.parse.stage import CaptionParser

Triples = Callable[[str], list[tuple[str, str, str]]]


@pytest.fixture(scope="session")
def triples() -> Triples:
    """(subject, predicate, object) of a caption's triplets, sorted."""
    parser = CaptionParser()
    return lambda caption: sorted((t.subject, t.predicate, t.object) for t in parser.parse([caption])[0])
