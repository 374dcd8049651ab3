"""The page on PyPI: the README, with links that work outside the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def absolute_links(readme: str, repository: str) -> str:
    """Return a README whose relative links and images lead to the repository on GitHub."""
    images = re.sub(r"(?<=!)(\[[^\]]*\]\()(?!https?:|#)", rf"\1{repository}/raw/main/", readme)
    return re.sub(r"(?<!!)(\[[^\]]*\]\()(?!https?:|#)", rf"\1{repository}/blob/main/", images)


class ReadmeHook(MetadataHookInterface):
    """Hatchling calls it, as pyproject.toml names it."""

    def update(self, metadata: dict[str, Any]) -> None:
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = absolute_links(readme, metadata["urls"]["Repository"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
