"""Where results are written: never over what a command reads, and never among the files of a run or a model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.files.roots import is_image
from sgpipe.storage.judgements import JUDGEMENTS
from sgpipe.storage.manifest import MANIFEST
from sgpipe.storage.run_folder import PRIVATE, README, RECIPE
from sgpipe.storage.shards import DATA
from sgpipe.utils.atomic import atomic_write

_OF_RUN = {MANIFEST, RECIPE, README, JUDGEMENTS, DATA, PRIVATE}
_OF_MODEL = {"config.json", "generation_config.json", "preprocessor_config.json", "special_tokens_map.json"}
_OF_MODEL |= {"model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"}
_OWNED = {  # what a folder that contains the file or folder has of its own
    MANIFEST: ("run", _OF_RUN),
    PRIVATE: ("run", _OF_RUN),
    "run.json": ("training", {RECIPE, "run.json", "metrics.jsonl", "tensorboard"}),
    "config.json": ("model", _OF_MODEL),
}


def check_output(path: Path, inputs: Iterable[str | Path] = ()) -> Path:
    """Return a file or folder that may be written.

    Raises UserError: it is one of `inputs` or an image in one of them, or belongs to a run or a model. Links are
    followed.
    """
    target = path.resolve()
    for place in map(Path, inputs):
        source = place.resolve()
        # os.path.exists: a value that is not a path, such as of --set, may be too long for one
        if target == source or (target.exists() and os.path.exists(source) and target.samefile(source)):
            raise UserError(f"{path} is read by this command: write to another place")
        inside = target.is_file() and is_image(target.name) and target.is_relative_to(source)
        if inside and not os.path.exists(source / MANIFEST):  # a run's own files are protected below
            raise UserError(f"{path} is an image in {place}, which this command reads: write to another place")
    for folder in target.parents:
        for mark, (kind, names) in _OWNED.items():
            if target.relative_to(folder).parts[0] in names and (folder / mark).exists():
                raise UserError(f"{path} belongs to the {kind} {folder}: write to another place")
    return path


@contextmanager
def write_result(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` when it is complete; its folder is made if needed.

    Raises UserError: `path` is a folder, or as `check_output`.
    """
    if check_output(path).is_dir():
        raise UserError(f"{path} is a folder, not a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        yield temporary


def write_result_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8. Raises UserError, OSError: as `write_result`."""
    with write_result(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
