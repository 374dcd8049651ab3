"""Every figure of README.md and docs/quality.md is that of a result in a file, which the script
that measured it wrote.

A claim is a piece of a page with fields, and the values of the fields. A page must have all its
claims as they follow from benchmarks/results/*.jsonl and experiments/results/*.jsonl. A number in a
section with figures that belongs to no claim fails, too. After new results, copy the texts that a
failure shows to the page.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from benchmarks.costs import LINES, cost_lines
from experiments.plan import Plan, load_plan
from experiments.report import interval, paired
from experiments.results import Results
from sgpipe.miniworld.actors import KINDS
from sgpipe.miniworld.relations import PREDICATES
from tests.values import values_of

ROOT = Path(__file__).parent.parent
README = "README.md"
QUALITY = "docs/quality.md"
SECTIONS = {
    README: ("## Why not the reference code", "## Quality", "## What it costs"),
    QUALITY: ("# Quality of the default run",),
}
# No figures: names, links, code, images of a page, and the level of intervals.
NO_FIGURES = re.compile(
    r"```.*?```|<!--.*?-->|`[^`\n]*`|!\[[^\]]*\]|\]\([^)]*\)|Objects365|RLIPv2|AP50|95%", re.DOTALL
)
PUBLISHED = "RLIPv2 publishes 61 to 88 GPU-hours for tagging Objects365"  # in its paper
COMPOSITIONAL = "test-compositional"
PAIRS_OF_A_GROUP = 100
WAYS = ("each", "shared")

Values = Sequence[float]
Claim = tuple[str, Sequence[Any]]


def json_lines(path: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))


@cache
def quality_lines() -> list[dict[str, Any]]:
    return json_lines(ROOT / "benchmarks/results/quality.jsonl")


def quality(measure: str, **selection: object) -> Values:
    """The values of a measure, one for each seed."""
    lines = [line for line in quality_lines() if selection.items() <= line.items()]
    seeds = values_of(lines, "seed")
    assert lines, selection
    assert len({*seeds}) == len(seeds), selection
    return [line[measure] for line in lines]


def labels(split: str = "val", name: str = "labels", **selection: object) -> dict[str, Any]:
    """The selection of labels of the pipeline with given boxes, as the README counts them unless it
    says otherwise.
    """
    defaults = {"script": "network_quality", "captions": "BLIP", "threshold": 0.2, "truth": "all"}
    return {**defaults, "split": split, "labels": name, **selection}


def between_detected_boxes(split: str = "val", **selection: object) -> dict[str, Any]:
    defaults = {"script": "detector_quality", "labels": "labels", "threshold": 0.2, "truth": "all"}
    return {**defaults, "split": split, **selection}


def cost(page: str, table: str, row: str, column: str) -> float:
    (line,) = (
        line
        for line in json_lines(LINES)
        if (line["page"], line["table"], line["row"]) == (page, table, row)
    )
    return float(line[column])


def times_slower(table: str, procedure: str) -> float:
    """How much longer a procedure takes for ten captions than sgpipe."""
    seconds = [cost("caption", table, row, "CPU s per image") for row in (procedure, "sgpipe")]
    return seconds[0] / seconds[1]


@cache
def plan() -> Plan:
    return load_plan()


def gain(experiment: str, stage: str, better: str, worse: str) -> tuple[float, float]:
    """The difference of the mean average precision, and half of its interval over seeds."""
    rows = Results(plan()).current(experiment)
    differences = paired(rows, stage, "seen mAP", better, worse)
    return fmean(differences), interval(differences)


def seeds_of(experiment: str) -> int:
    return plan().experiments[experiment].seeds


def means(selection: dict[str, Any]) -> Values:
    return [fmean(quality(measure, **selection)) for measure in ("precision", "recall", "AP")]


def image_sets(script: str) -> tuple[int, int]:
    """How many seeds a script measured, and on how many images each."""
    lines = [line for line in quality_lines() if line["script"] == script]
    (images,) = set(values_of(lines, "images"))
    return len(set(values_of(lines, "seed"))), images


@cache
def layout_quality() -> dict[str, Any]:
    """The figures of the packaged layout model on photographs with captions, by candidates."""
    figures = json.loads(
        (ROOT / "sgpipe/stages/tag/layout/weights/evidence.json").read_text("utf-8")
    )["figures"]
    return dict(figures)


def photograph_claims() -> Iterator[Claim]:
    measures = ("pairs found", "precision in scope", "verbs found")
    page = (ROOT / "benchmarks/results/photographs.md").read_text("utf-8")
    yield "[{} others]", [int(re.findall(r": (\d+) COCO photographs", page)[0])]
    yield "confidence ≥ {}", [layout_quality()["confidence"]]
    for text, candidates, figure in (
        ("|`pair.candidates=layout`: boxes alone", "layout", "|{:.1%}"),
        ("|`captions+layout`: and five human captions", "captions+layout", "|**{:.1%}**"),
    ):
        yield (
            text + 3 * figure + "|",
            [layout_quality()[candidates][measure] for measure in measures],
        )
    columns = next(line for line in page.splitlines() if line.startswith("| candidates ")).split(
        " | "
    )
    row = next(
        line for line in page.splitlines() if line.startswith("| captions | overlap | 5 | rules |")
    ).split(" | ")
    cells = [row[columns.index(measure)].split(" ")[0] for measure in measures]
    yield "|captions, overlapping boxes|{}|{}|{}|", cells
    lines = json_lines(ROOT / "benchmarks/results/layout.jsonl")
    (all_boxes,) = (
        line
        for line in lines
        if line.get("data") == "V-COCO, all boxes of COCO" and line["method"] == "layout"
    )
    yield "precision is {:.1%} at recall 0.8", [all_boxes["precision at 0.8"]]


def readme_claims() -> Iterator[Claim]:
    yield from photograph_claims()
    tagging = "an 800x1066 image, 600 cached texts"
    step = "training step, 800x1066, 501 texts, batch 1"
    captions = [f"10 captions of a 384 px image, {size} BLIP" for size in ("base", "small")]
    one_call = [times_slower(table, "generate(num_return_sequences=10)") for table in captions]
    ten_calls = [times_slower(table, "10 x generate()") for table in captions]
    assert round(ten_calls[0]) == round(ten_calls[1])
    ratios = [cost("tagger", tagging, groups, "ratio") for groups in ("1", "16")]
    yield "|1×: our re-implementation of its procedure|tagging {:.0f}–{:.0f}×", ratios
    yield "training step {:.1f}×", [cost("train_step", step, "step, CPU seconds", "ratio")]
    yield (
        "ten captions {:.0f}× (ten calls), {:.1f}–{:.1f}× (one call, ten samples)|",
        [ten_calls[0], *one_call],
    )

    yield (
        "**Synthetic images**: {} sets of {} new ones, boxes given, confidence ≥ 0.2",
        image_sets("network_quality"),
    )
    row = "{:.1%}|{:.1%}|{:.2f}|"
    yield "|sgpipe, synthetic images|**{:.1%}**|**{:.1%}**|**{:.2f}**|", means(labels())
    yield "|every matching pair, no tagger|" + row, means(labels(name="all matching pairs"))
    yield "|combinations never seen in training|" + row, means(labels(COMPOSITIONAL))
    label_row = "|`sgpipe label`, which finds the boxes ({} sets)|" + row
    yield label_row, [image_sets("detector_quality")[0], *means(between_detected_boxes())]

    few = gain("few100", "training", "both", "annotated only")
    more = gain("few300", "training", "both", "annotated only")
    control = gain("captioner100", "training", "both, own captioner", "annotated only")
    scale = gain("scale", "pre-training", "16x", "annotated only")
    yield (
        (
            "|100|2,000 images, labelled by a tagger of these 100; captioner of 40,000|{:+.3f} ±"
            " {:.3f} ({} seeds)|"
        ),
        (*few, seeds_of("few100")),
    )
    yield (
        (
            "|300|2,000 images, labelled by a tagger of these 300; captioner of 40,000|{:+.3f} ±"
            " {:.3f} ({} seeds)|"
        ),
        (*more, seeds_of("few300")),
    )
    yield (
        "|100|the same, if the captioner, too, saw only these 100|{:+.3f} ± {:.3f} ({} seeds)|",
        (*control, seeds_of("captioner100")),
    )
    yield (
        "|1,000|16,000 images, labelled by a tagger of these 1,000|{:+.3f} ± {:.3f} ({} seeds)|",
        (*scale, seeds_of("scale")),
    )

    yield "||measured on a CPU, {}|", [json_lines(LINES)[0]["date"]]
    yield "|{:.1f} ms per image|", [cost("scale", "", "100,000", "CPU-ms per image")]
    yield (
        "|ten captions, BLIP base|{:.1f} s per image|",
        [cost("caption", captions[0], "sgpipe", "CPU s per image")],
    )
    seconds = [cost("tagger", tagging, groups, "sgpipe, s") for groups in ("1", "16")]
    yield (
        "|{:.1f} s per image for {} pairs, {:.1f} s for {:,}|",
        (seconds[0], PAIRS_OF_A_GROUP, seconds[1], 16 * PAIRS_OF_A_GROUP),
    )
    memory = cost("train_step", step, "peak memory, GB", "sgpipe")
    yield (
        "|training step, R-Tagger, batch 1|{:.0f} s, {:.1f} GB|",
        (cost("train_step", step, "step, CPU seconds", "sgpipe"), memory),
    )
    size = 100_000 * cost("scale", "", "100,000", "bytes per row") / 1e9
    memories = [
        cost("scale", "", "100,000", f"{process} MB") / 1000 for process in ("reading", "driver")
    ]
    yield (
        "|100,000 images|{:.2f} GB on disk; {:.1f} GB to read the annotations, then {:.1f} GB|",
        (size, *memories),
    )
    yield PUBLISHED, []


def quality_claims() -> Iterator[Claim]:
    # it is only implied
    yield (
        "{} object classes and {} relations",
        [len(KINDS), len(set(PREDICATES) - {"with"})],
    )
    for script in ("network_quality", "detector_quality"):
        yield "{} sets of {} new images", image_sets(script)
        seeds = [line["seed"] for line in quality_lines() if line["script"] == script]
        yield "seeds {} to {}", [min(seeds), max(seeds)]
    yield "confidence ≥ 0.2", []
    yield "score 0.5", []
    for row in (*quality_table(), *detector_table()):
        yield row, []


def spread(values: Values) -> str:
    return f"{100 * fmean(values):.1f} ({100 * min(values):.1f}–{100 * max(values):.1f})"


def quality_table() -> Iterator[str]:
    """The rows of the table of labels between given boxes."""
    rows = [("BLIP", "labels", 0.2), ("BLIP", "labels", 0.5), ("BLIP", "all matching pairs", 0.2)]
    rows += [("BLIP", "labels, any pair", 0.2), ("BLIP", "labels, any pair", 0.5)]
    rows += [("oracle", "labels", 0.2), ("oracle", "all matching pairs", 0.2)]
    for split, images in (("val", "new"), (COMPOSITIONAL, "new combinations")):
        for captions, name, threshold in rows:
            cells = [
                images,
                {"BLIP": "tiny BLIP", "oracle": "ground truth"}[captions],
                name,
                f"{threshold}",
            ]
            for truth in ("all", "composed"):
                selection = labels(split, name, captions=captions, threshold=threshold, truth=truth)
                cells += [
                    spread(quality(measure, **selection)) for measure in ("precision", "recall")
                ]
                cells.append(f"{fmean(quality('AP', **selection)):.3f}")
            yield f"| {' | '.join(cells)} |"


def detector_table() -> Iterator[str]:
    """The rows of the tables of detected boxes, and of labels between them."""
    for split, images in (("val", "new"), (COMPOSITIONAL, "new combinations")):
        network = {"script": "detector_quality", "split": split, "box threshold": 0.5}
        cells = [images, f"{fmean(quality('AP50', **network)):.3f}"]
        cells += [
            spread(quality(measure, **network)) for measure in ("box precision", "box recall")
        ]
        cells += [
            f"{fmean(quality(measure, **network)):.3f}" for measure in ("HOI mAP", "triplet AP")
        ]
        yield f"| {' | '.join(cells)} |"
    for split, images in (("val", "new"), (COMPOSITIONAL, "new combinations")):
        cells = [images]
        for truth in ("all", "composed"):
            selection = between_detected_boxes(split, truth=truth)
            cells += [spread(quality(measure, **selection)) for measure in ("precision", "recall")]
            cells.append(f"{fmean(quality('AP', **selection)):.3f}")
        yield f"| {' | '.join(cells)} |"


CLAIMS = {README: readme_claims, QUALITY: quality_claims}


@cache
def claimed_texts(page: str) -> list[str]:
    return [text.format(*values) for text, values in CLAIMS[page]()]


def sections(page: str, text: str) -> str:
    """The sections that have figures."""
    parts = []
    for title in SECTIONS[page]:
        body = text.partition(f"{title}\n")[2]
        assert body, title
        level = "#" * title.index(" ")
        parts.append(re.split(rf"^{level} ", body, flags=re.MULTILINE)[0])
    return "\n".join(parts)


def faults(page: str, text: str) -> list[str]:
    """The claims that a page lacks, and its numbers that belong to none."""
    texts = claimed_texts(page)
    missing = [f"{page} lacks: {claim}" for claim in texts if claim not in text]
    rest = sections(page, text)
    for claim in texts:
        rest = rest.replace(claim, "")
    rest = NO_FIGURES.sub("", rest)
    unknown = [
        f"{page}: no result has {line.strip()!r}"
        for line in rest.splitlines()
        if re.search(r"\d", line)
    ]
    return missing + unknown


def page_text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", CLAIMS)
def test_every_figure_is_that_of_a_result(page: str) -> None:
    assert faults(page, page_text(page)) == []


@pytest.mark.parametrize("page", CLAIMS)
def test_another_figure_and_a_figure_without_result_are_faults(page: str) -> None:
    text = page_text(page)
    figure = next(
        number for claim in claimed_texts(page) for number in re.findall(r"\d\d\.\d", claim)
    )
    assert len(faults(page, text.replace(figure, "12.3"))) >= 2
    title = SECTIONS[page][0]
    assert len(faults(page, text.replace(f"{title}\n", f"{title}\n\n| sgpipe | 99.9% |\n", 1))) == 1


def test_lines_of_costs_are_those_of_the_pages() -> None:
    assert json_lines(LINES) == list(cost_lines())


def test_verdicts_on_doubts_are_those_of_the_results() -> None:
    rows = json_lines(ROOT / "benchmarks/results/doubts_by_hand.jsonl")
    counts = Counter(values_of(rows, "kind", "verdict"))
    improbable, missing = (
        [counts[kind, verdict] for verdict in ("error", "fine", "cannot tell")]
        for kind in ("improbable", "missing")
    )
    assert sum(improbable) == sum(missing) == 50
    audit = " ".join(page_text("docs/audit.md").split())
    text = "improbable annotations {} are errors, {} are fine, and {} cannot be told"
    assert text.format(*improbable) in audit
    text = "likely missing ones {} are missing, {} are not, and {} cannot be told"
    assert text.format(*missing) in audit
    page = page_text("benchmarks/results/doubts_by_hand.md")
    assert "| improbable annotations | {} | {} | {} |".format(*improbable) in page
    assert "| likely missing | {} | {} | {} |".format(*missing) in page


def test_verdicts_on_parsers_are_those_of_the_results() -> None:
    rows = json_lines(ROOT / "benchmarks/results/parsers_by_hand.jsonl")
    verdicts = Counter((row["parser"], row["verdict"]) for row in rows if "parser" in row)
    better = Counter(row["better"] for row in rows if "better" in row)
    page = " ".join(page_text("benchmarks/results/parse_quality.md").split())
    for parser in ("rules", "learned"):
        right, wrong, unclear = (verdicts[parser, name] for name in ("right", "wrong", "unclear"))
        assert right + wrong + unclear == better.total() == 60
        assert f"| {right} | {wrong} | {unclear} |" in page
    text = "that of the rules in {rules}, that of the learned parser in {learned}, and neither in {neither}"
    assert text.format(**better) in page
    models = " ".join(page_text("docs/models.md").split())
    text = "better one in {rules} and that of `learned` in {learned}"
    assert text.format(**better) in models


def questions(**selection: object) -> dict[str, Any]:
    """The line of benchmarks/results/questions.jsonl with these values."""
    lines = json_lines(ROOT / "benchmarks/results/questions.jsonl")
    (line,) = (line for line in lines if selection.items() <= line.items())
    return line


def times_fewer(data: str, place: str, *parts: str) -> float:
    """How many times fewer parts of prompts are computed for shared questions."""
    before, after = (questions(data=data, way=way) for way in WAYS)
    names = [f"{place}: {part}" for part in parts]
    return sum(before[name] for name in names) / sum(after[name] for name in names)


def test_savings_of_shared_questions_are_those_of_the_results() -> None:
    tokens = ("image_tokens", "text_tokens")
    figures = []
    for data in ("COCO-MINI", "V-COCO"):
        line = questions(data=data, way="shared")
        figures.append(line["relations"] / line["images"])
        figures += [times_fewer(data, "local", "images"), times_fewer(data, "local", *tokens)]
    figures += [times_fewer(data, "server", "images") for data in ("COCO-MINI", "V-COCO")]
    models = " ".join(page_text("docs/models.md").split())
    text = (
        "an image with candidates has {:.1f} of them. A model here then computes {:.1f} times fewer"
        " images and {:.1f} times fewer tokens; with the boxes of V-COCO ({:.1f} candidates) {:.1f}"
        " and {:.1f} times. A server with prefix caching, by which `each` profits, too, computes"
        " {:.1f} and {:.1f} times fewer images"
    )
    assert text.format(*figures) in models
    precisions = [questions(page="numbering", way=way, table="miniworld")["AP"] for way in WAYS]
    assert "had AP {:.3f} with outlines and {:.3f} with numbers".format(*precisions) in models


def test_pages_of_shared_questions_have_their_lines() -> None:
    pages = [page_text(f"benchmarks/results/{name}.md") for name in ("questions", "numbering")]
    cells = {cell.strip() for page in pages for cell in page.split("|")}
    for line in json_lines(ROOT / "benchmarks/results/questions.jsonl"):
        for value in line.values():
            if isinstance(value, int):
                assert f"{value:,}" in cells, line
    costs = [
        questions(table="CPU", who=who, way=way)["CPU-ms per image"]
        for who in ("client", "model")
        for way in WAYS
    ]
    assert {f"{value:,}" for value in costs} <= cells
