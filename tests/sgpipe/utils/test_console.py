import io
import json
import unicodedata

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sgpipe.utils.console import Progress, errors, json_text, output, progress, single_line

EVIL = "on\x1b[31m\x07\x9b2J \u202edeen\u200b \ud800 \u2028ok\u2066"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_counts_relations_and_errors(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgpipe.utils.console._SECONDS_BETWEEN_LINES", -1)
    text = io.StringIO()
    screen = Console(file=text, force_terminal=terminal, width=150)
    with Progress(screen).images(4) as advance:
        advance(1, {"relations": 2})
        advance(3, {"relations": 1, "errors": 1})
    assert "4/4" in text.getvalue()
    assert "3 relations, 1 error" in text.getvalue()


def test_text_of_data_is_one_line_without_what_a_terminal_acts_on() -> None:
    assert single_line(EVIL) == "on [31m 2J deen ? ok"
    assert single_line("a\n b\tc") == "a b c"
    assert single_line("on the left of", 10) == "on the le…"
    assert single_line("على · 日本 · naïve – 🐕") == "على · 日本 · naïve – 🐕"


@pytest.mark.parametrize("make", [output, errors, progress])
def test_every_console_prints_only_what_is_seen(make, capsys) -> None:
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    console = make()
    console.print(EVIL, soft_wrap=True)
    console.print(Text(EVIL), table)
    Progress(console).say(f"first\n{EVIL}")
    printed = "".join(capsys.readouterr())
    assert printed.count("deen") == 6
    assert {unicodedata.category(letter) for letter in printed if letter != "\n"}.isdisjoint(
        {"Cc", "Cf", "Cs", "Zl"}
    )
    assert "first\non" in printed


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_json_for_a_terminal_is_the_same_json(encoding, monkeypatch) -> None:
    value = {EVIL: [1, "naïve 狗 😀\n"], "\ud800": None}
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    text = json_text(value, indent=1)
    assert json.loads(text.encode(encoding).decode(encoding)) == value
    assert ("naïve" in text, "狗 😀" in text) == (encoding != "ascii", encoding == "utf-8")
    assert {unicodedata.category(letter) for letter in text if letter != "\n"}.isdisjoint(
        {"Cc", "Cf", "Cs", "Zl"}
    )


@pytest.mark.parametrize("make", [output, errors, progress])
def test_names_between_colons_are_no_emoji(make, capsys) -> None:
    table = Table(":dog:")
    table.add_row("own.captions:X: missing")
    make().print("own.captions:X: missing")
    make().print(table)
    printed = "".join(capsys.readouterr())
    assert printed.count("own.captions:X: missing") == 2
    assert ":dog:" in printed
