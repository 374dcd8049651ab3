"""The mkdocs hook: adds the generated pages to the site, so that they never differ from the code.

Generated are the pages of the command line and of both recipes' settings, and the last results of
the benchmarks and experiments. Links that lead to their files in the repository lead to these pages
on the site.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from commands import command_page
from mkdocs.structure.files import File, Files
from settings import settings_page

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
LINKS = {
    "../benchmarks/results)": "benchmarks.md)",
    "../benchmarks/results/)": "benchmarks.md)",
    "../benchmarks/results/": "benchmarks/",
    "../experiments/results/README.md)": "experiments/results.md)",
    "../../docs/": "../",  # of the experiments' results
}


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for name, text in generated_pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links into the repository to the pages of the site."""
    for link, page in LINKS.items():
        markdown = markdown.replace(f"]({link}", f"]({page}")
    return markdown


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Links of notebooks lead to pages; mkdocs does so for Markdown only."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    return re.sub(r'href="\.\./([\w-]+)\.md', r'href="../../\1/', html)


def generated_pages() -> dict[str, str]:
    """The text of each generated page by its path on the site."""
    results = {
        f"benchmarks/{path.name}": path.read_text(encoding="utf-8")
        for path in sorted(RESULTS.glob("*.md"))
    }
    titles = [f"* [{_title(text)}]({name})" for name, text in results.items()]
    introduction = (
        "# Benchmarks\n\nThe last run of each benchmark; `make bench` makes these pages.\n\n"
    )
    return {
        "cli.md": command_page(),
        "settings.md": settings_page("labelling"),
        "training-settings.md": settings_page("training"),
        "benchmarks.md": introduction + "\n".join(titles) + "\n",
        "experiments/results.md": (ROOT / "experiments/results/README.md").read_text(
            encoding="utf-8"
        ),
        **results,
    }


def _title(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")
