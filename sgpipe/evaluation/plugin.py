"""An evaluator of the user's own: a measure of predicted relations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Evaluator:
    """A measure of relations, for `sgpipe eval package.module:EVALUATOR`.

    Args:
        name: that the result states.
        measure: gets images, each with its ground truth and what was predicted, and the names of
            their classes, and returns numbers by their names. With `--compare` it is called for many
            random halves of the images; intervals are those of shares, from 0 to 1. Further
            parameters are options of the command.
        form: of the files that are read: as of Open Images, or of HICO-DET, where persons are the
            subjects.
    """

    name: str
    measure: Callable[..., Mapping[str, float]]
    form: Literal["openimages", "hico"] = "openimages"

    @property
    def options(self) -> list[inspect.Parameter]:
        """The further parameters of `measure`, which are options of the command."""
        parameters = inspect.signature(self.measure, eval_str=True).parameters.values()
        return list(parameters)[2:]
