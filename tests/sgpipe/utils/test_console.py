import io
import json
import unicodedata

import pytest
from rich.color import ColorSystem
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sgpipe.utils.console import Meter, Progress, count, errors, json_text, output, progress, single_line


@pytest.mark.parametrize(
    ("number", "nouns", "text"),
    [
        (0, ("file",), "0 files"),
        (1, ("error row",), "1 error row"),
        (2000, ("error row",), "2,000 error rows"),
        (1, ("class", "classes"), "1 class"),
        (3, ("class", "classes"), "3 classes"),
    ],
)
def test_nouns_agree_with_their_number(number: int, nouns: tuple[str, ...], text: str) -> None:
    assert count(number, *nouns) == text


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def estimates(
    start: float, unit: float, workers: int, units: int, *, told: bool = True, spread: float = 0.3
) -> list[tuple[float, float | None, float]]:
    """Of a run with equal units: when each of them ends, the estimate then, and the truth.

    Args:
        start: seconds before the first worker begins.
        unit: seconds per unit.
        told: whether the meter is told how long units take.
        spread: seconds between the first and the last worker.
    """
    clock, images = Clock(), 8
    meter = Meter(units * images, clock)
    ends = sorted(
        start + spread * (number % workers) / workers + unit * (number // workers + 1) for number in range(units)
    )
    found = []
    for end in ends:
        clock.now = end
        meter.add(images, {}, unit if told else 0)
        found.append((end, meter.seconds_left, ends[-1] - end))
    return found


@pytest.mark.parametrize("start", [0, 13, 600])
@pytest.mark.parametrize("unit", [0.5, 10, 100])
@pytest.mark.parametrize("workers", [1, 2, 16])
@pytest.mark.parametrize("spread", [0.01, 0.9])
def test_the_time_left_is_near_the_truth_from_its_first_moment(
    start: float, unit: float, workers: int, spread: float
) -> None:
    found = estimates(start, unit, workers, 20 * workers, spread=spread * unit)
    shown = [(end, left, truth) for end, left, truth in found if left is not None]
    assert shown[0][0] <= start + spread * unit + 2.1 * unit  # it comes as soon as there is a second round
    for _, left, truth in shown:
        assert abs(left - truth) <= 0.15 * truth + 1.1 * unit


def test_a_short_run_is_not_given_minutes() -> None:
    """8 units of 3 images after 13 seconds of start, which took 26 s in all: it said 2:24 left."""
    found = estimates(13, 3, 2, 8)
    assert all(left is None or left <= truth + 3 for _, left, truth in found)
    assert found[0][1] is None


def test_without_the_time_of_units_the_start_delays_the_estimate_but_does_not_distort_it() -> None:
    shown = [(end, left, truth) for end, left, truth in estimates(60, 5, 4, 200, told=False) if left is not None]
    assert 130 <= shown[0][0] <= 140
    assert all(abs(left - truth) <= 0.15 * truth + 6 for _, left, truth in shown)


def test_the_time_left_runs_down_between_units() -> None:
    clock = Clock()
    meter = Meter(30, clock)
    for clock.now in (10.0, 20.0):
        meter.add(10, {}, 10)
    assert meter.left_text == "0:00:10"
    clock.now = 24.0
    assert meter.left_text == "0:00:06"
    clock.now = 99.0
    assert meter.seconds_left == 0


def test_the_rate_is_that_of_the_work_without_its_start() -> None:
    clock = Clock()
    meter = Meter(20, clock)
    clock.now = 62.0
    meter.add(10, {}, 2)
    assert meter.rate_text == "5.0 images/s"
    assert meter.left_text == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_the_first_line_has_no_estimate_and_the_last_one_no_rest(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgpipe.utils.console._SECONDS_BETWEEN_LINES", -1)
    text = io.StringIO()
    screen = Console(file=text, force_terminal=terminal, width=150)
    with Progress(screen).images(4) as advance:
        advance(1, {"relations": 2}, 5)
        assert "left" not in text.getvalue()
        advance(3, {"relations": 1, "errors": 1})
    shown = text.getvalue()
    assert "3 relations, 1 error" in shown
    assert "left" not in shown.splitlines()[-1]


EVIL = "on\x1b[31m\x07\x9b2J \u202edeen\u200b \ud800 \u2028ok\u2066"


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
    assert {unicodedata.category(letter) for letter in printed if letter != "\n"}.isdisjoint({"Cc", "Cf", "Cs", "Zl"})
    assert "first\non" in printed


def test_colours_of_a_terminal_remain() -> None:
    console = output()
    console._color_system, console._force_terminal = ColorSystem.STANDARD, True
    console.file = io.StringIO()
    console.print("a\x1b[2J", style="red")
    assert console.file.getvalue() == "\x1b[31ma [2J\x1b[0m\n"


def test_json_for_a_terminal_is_the_same_json() -> None:
    value = {EVIL: [1, "naïve\n"], "b": None}
    text = json_text(value, indent=1)
    assert json.loads(text) == value
    assert "naïve" in text
    assert {unicodedata.category(letter) for letter in text if letter != "\n"}.isdisjoint({"Cc", "Cf", "Cs", "Zl"})
