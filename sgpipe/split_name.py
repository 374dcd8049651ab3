"""The name of a split, where nobody gives one."""

from __future__ import annotations

import re
from pathlib import Path


def guess_split(annotations: Path) -> str:
    """The split an annotation file is named after ("instances_val2017.json" → "val"); "train" if it is not."""
    names = re.findall(r"(?<![a-z])(?:train|val|test)(?![a-z])", annotations.stem.lower())
    return names[-1] if names else "train"
