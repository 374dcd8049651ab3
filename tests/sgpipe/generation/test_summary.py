import io
import re
from collections import Counter
from pathlib import Path

from rich.console import Console

from sgpipe.generation.summary import print_import
from sgpipe.storage.manifest import Summary


def test_what_a_source_lacks_is_counted_and_error_rows_are_named():
    screen = Console(file=io.StringIO(), width=200)
    counts = Counter(images=3, errors=1, boxes=5, relations=7, images_with_relations=2)
    problems = Counter(crowd=1001, repeated_relations=1002, clipped=0)
    print_import(Summary(Path("out"), 3, counts, Counter(), problems, 1), 4, screen)
    text = screen.file.getvalue()
    for line in (r"crowd boxes, which get no pairs +│ +1,001", r"repeated relations +│ +1,002", r"predicates +│ +4 "):
        assert re.search(line, text)
    assert "clipped" not in text
    assert "1 error row:" in text


def test_a_finished_run_is_complete_also_for_a_smaller_limit():
    def complete(images: int, planned: int) -> bool:
        return Summary(Path("out"), planned, Counter(images=images), Counter(), Counter(), 1).as_json()["complete"]

    assert (complete(24, 24), complete(24, 10), complete(9, 10)) == (True, True, False)
