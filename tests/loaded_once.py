"""Models that tests load again and again are read from their files once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import spacy
from spacy.language import Language
from transformers import PreTrainedModel

NETWORKS = 16

FileStamp = tuple[str, int, int]


def stamps(folder: Path) -> list[FileStamp]:
    """Tell the files of a folder from those that it had before a test changed them."""
    states = {path.name: path.stat() for path in sorted(folder.iterdir())}
    return [(name, state.st_mtime_ns, state.st_size) for name, state in states.items()]


@contextmanager
def networks_loaded_once() -> Iterator[None]:
    """Let transformers give copies of a network of a folder that it loaded before.

    Most of the time that loading a tiny network takes goes into regular expressions of
    transformers, one for each weight.
    """
    load = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
    loaded: dict[str, object] = {}

    def from_pretrained(
        cls: type[PreTrainedModel], name: object, *arguments: object, **options: object
    ) -> object:
        folder = Path(str(name))
        if not folder.is_dir():
            return load(cls, name, *arguments, **options)
        key = repr((cls, folder, stamps(folder), arguments, sorted(options.items())))
        if key not in loaded:
            network = load(cls, name, *arguments, **options)
            if len(loaded) == NETWORKS:
                del loaded[next(iter(loaded))]
            loaded[key] = network
        return deepcopy(loaded[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedModel, "from_pretrained", classmethod(from_pretrained))
        yield


@contextmanager
def parsers_loaded_once() -> Iterator[None]:
    """Let spaCy load a model of a name once."""
    load = spacy.load

    @cache
    def load_once(name: str, exclude: tuple[str, ...]) -> Language:
        return load(name, exclude=exclude)

    def load_any(name: str, exclude: tuple[str, ...] | list[str] = ()) -> Language:
        return load_once(name, tuple(exclude))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spacy, "load", load_any)
        yield
