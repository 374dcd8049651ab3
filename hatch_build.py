"""The page on PyPI: the README, with links that work outside the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def absolute_links(readme: str, repository: str) -> str:
    """Return a README whose relative links and images lead to the repository on GitHub."""
    image, elsewhere = r"!\[[^\]]*\]\(", r"(?![a-z][a-z0-9+.-]*:|#)"
    readme = re.sub(rf"({image}){elsewhere}", rf"\1{repository}/raw/main/", readme)
    link = rf"(?<!!)\[(?:[^\[\]]|{image}[^)]*\))*\]\("  # its text may be an image
    return re.sub(rf"({link}){elsewhere}", rf"\1{repository}/blob/main/", readme)


class ReadmeHook(MetadataHookInterface):
    """Hatchling calls it, as pyproject.toml names it."""

    def update(self, metadata: dict[str, Any]) -> None:
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = absolute_links(readme, metadata["urls"]["Repository"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
