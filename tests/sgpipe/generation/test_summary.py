import io
import re
from collections import Counter
from pathlib import Path

from rich.console import Console

import sgpipe.sources
from sgpipe.generation.summary import print_import
from sgpipe.storage.manifest import Summary

SOURCES = Path(sgpipe.sources.__file__).parent


def test_every_problem_that_importers_count_has_words():
    code = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES.glob("*.py"))
    names = set(re.findall(r"problems\[\"(\w+)\"\] \+= ", code))
    assert len(names) > 8
    screen = Console(file=io.StringIO(), width=200)
    counts = Counter(images=3, errors=1, boxes=5, relations=7, images_with_relations=2)
    problems = Counter({name: 1000 + number for number, name in enumerate(sorted(names))})
    print_import(Summary(Path("out"), 3, counts, Counter(), problems, 1), 4, screen)
    text = screen.file.getvalue()
    for count in problems.values():
        assert f"{count:,}" in text
    assert re.search(r"different predicates +│ +4 ", text)
    assert "1 error row:" in text


def test_a_finished_run_is_complete_also_for_a_smaller_limit():
    def complete(images: int, planned: int) -> bool:
        return Summary(Path("out"), planned, Counter(images=images), Counter(), Counter(), 1).as_json()["complete"]

    assert (complete(24, 24), complete(24, 10), complete(9, 10)) == (True, True, False)
