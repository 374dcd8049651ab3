"""How well nouns of captions match annotated classes: sgpipe's synonym table and matching, and
RLIPv2's.

    python -m benchmarks.bench_matching --instances FILE... --captions FILE... --reference TABLE

The FILEs are COCO annotations and captions, TABLE is RLIPv2's hico_obj_paraphrase.json; the
defaults are those of SGPIPE_ORACLE. Mentions are the subjects and objects of the parsed triplets. A
mention is correct if a class it matches is annotated in its image. Recall is the share of annotated
classes (per image) that a mention matches. Without instances only the share of mentions that match
a class is shown.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from pathlib import Path

from rich.table import Table

from benchmarks.measure import report
from sgpipe.recipe import ParseConfig
from sgpipe.sources.vocabulary import load_synonyms, packaged_synonyms
from sgpipe.stages.matching import HeadMatcher, Matcher, SubstringMatcher
from sgpipe.stages.parse.stage import CaptionParser

Mentions = dict[str, list[tuple[str, str]]]


def read_mentions(paths: list[Path]) -> Mentions:
    """(noun phrase, head noun) of all subjects and objects, by image id."""
    items = [item for path in paths for item in json.loads(path.read_text())["annotations"]]
    parsed = CaptionParser(ParseConfig()).parse([item["caption"] for item in items])
    mentions: Mentions = defaultdict(list)
    for item, triplets in zip(items, parsed, strict=True):
        nouns = [
            noun
            for t in triplets
            for noun in ((t.subject, t.subject_head), (t.object, t.object_head))
        ]
        mentions[str(item["image_id"])] += dict.fromkeys(nouns)
    return mentions


def read_classes(paths: list[Path]) -> dict[str, set[str]]:
    """Annotated classes by image id."""
    classes: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        content = json.loads(path.read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        for item in content["annotations"]:
            classes[str(item["image_id"])].add(names[item["category_id"]])
    return classes


def measure(matcher: Matcher, mentions: Mentions, classes: dict[str, set[str]]) -> list[str]:
    """Shares of mentions that match a class, of these that are correct, and of annotated classes
    that are matched.
    """
    total = matching = correct = recalled = 0
    for image, nouns in mentions.items():
        matches = [set(matcher.classes(*noun)) for noun in nouns]
        total += len(matches)
        matching += sum(map(bool, matches))
        correct += sum(bool(matched & classes[image]) for matched in matches)
        recalled += len(classes[image] & set().union(*matches))
    annotated = sum(len(classes[image]) for image in mentions)
    shares = (
        [(matching, total), (correct, matching), (recalled, annotated)]
        if annotated
        else [(matching, total)]
    )
    return [f"{part / whole:.1%} ({part:,} of {whole:,})" for part, whole in shares]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    data = Path(os.environ.get("SGPIPE_ORACLE") or ".") / "data"
    coco = data / "coco_mini"
    splits = ("train", "val")
    captions = [coco / f"captions_{split}2017.json" for split in splits]
    instances = [coco / f"instances_{split}2017.json" for split in splits]
    parser.add_argument("--captions", type=Path, nargs="+", default=captions)
    parser.add_argument("--instances", type=Path, nargs="*", default=instances)
    parser.add_argument(
        "--reference", type=Path, default=data / "priors" / "hico_obj_paraphrase.json"
    )
    arguments = parser.parse_args()
    missing = [path for path in (*arguments.captions, arguments.reference) if not path.is_file()]
    if missing:
        print(
            f"skipped: {missing[0]} does not exist (set SGPIPE_ORACLE to the folder with the small"
            " real datasets)"
        )
        return
    mentions = read_mentions(arguments.captions)
    classes = read_classes(arguments.instances)
    columns = ["table and matching", "mentions that match a class"]
    columns += ["correct", "annotated classes matched"] if arguments.instances else []
    table = Table(*columns, title=f"{len(mentions):,} images")
    ours = packaged_synonyms("coco")
    theirs = load_synonyms(arguments.reference)
    for name, matcher in (
        ("RLIPv2's table, substring", SubstringMatcher(theirs)),
        ("RLIPv2's table, head", HeadMatcher(theirs)),
        ("sgpipe's table, substring", SubstringMatcher(ours)),
        ("sgpipe's table, head", HeadMatcher(ours)),
    ):
        table.add_row(name, *measure(matcher, mentions, classes))
    report(
        __doc__,
        table,
        'The column "correct" favours substring matching: "hair", matched to a person, counts as'
        " correct in every image with a person.",
    )


if __name__ == "__main__":
    main()
