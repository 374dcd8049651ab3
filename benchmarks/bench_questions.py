"""One image for all questions: requests, prefills and CPU time of `tag.questions`.

    python -m benchmarks.bench_questions [--rounds 3] [--data FOLDER] [--lines FILE]

Candidates are what five human captions name between COCO's boxes (recipe coco, rules): of 79 images
of val2017 with all boxes (COCO-MINI), and of 262 with the boxes of people and of what they use
(V-COCO). These are all of COCO's images with both that were at hand. Images are counted by their
sizes, with blank pixels.

Prefill tokens are those of prompts. Of an image they are counted by Qwen2.5-VL's rule, a token for
28x28 pixels; of text a token is a word or a mark, and 12 are the template's. A local model computes
each request of `each` in full; of `shared` it computes once what all requests of an image begin
with. A server: with prefix caching in blocks of 16 tokens, as vLLM has it, by which `each` profits,
too, as its two requests share one image. No server was measured.

CPU time: the 18 of COCO-MINI's 24 photographs of val2017 that have candidates, the median of
rounds. "client": drawing and encoding for a server. "model": all of it with a tiny random
checkpoint of Qwen2.5-VL's architecture (width 32, two layers), which sees as many image tokens as
the published one; the larger a model, the more its prefills count.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

from PIL import Image
from rich.table import Table
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from benchmarks.measure import cost_of_sgpipe, medians, report
from sgpipe.recipe import TagConfig
from sgpipe.records import Record, Relation
from sgpipe.stages.score.scorer import VlmScorer
from sgpipe.stages.served.chat import ChatRequest, Choice
from sgpipe.stages.tag.methods import candidates
from sgpipe.storage.run_records import iter_records
from tests.vlm_checkpoints import make_vlm

Way = Literal["each", "shared"]
WAYS: tuple[Way, ...] = get_args(Way)
SETS = {
    "COCO-MINI": ("coco_mini", "instances_val2017.json", "captions_val2017.json"),
    "V-COCO": ("vcoco_captions", "instances.json", "captions.json"),
}
FACTOR = 28  # pixels per side of an image token
PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
HEAD = 5  # tokens of the template before the image, and after the text
TAIL = 7
BLOCK = 16
WHO = {"local": "local model", "server": "server"}
NO_SERVER = "http://localhost:1/v1"

Line = dict[str, str | int | float]
Token = str | int


@dataclass
class ScriptedModel:
    """Keeps what it is asked, and finds everything as probable as not."""

    requests: list[ChatRequest] = field(default_factory=list)

    def ask_all(self, requests: Iterable[ChatRequest]) -> Iterator[list[Choice]]:
        for request in requests:
            self.requests.append(request)
            yield [Choice("", None, {"yes": -1.0, "no": -1.0})]

    def ask_groups(self, groups: Iterable[Sequence[ChatRequest]]) -> Iterator[list[list[Choice]]]:
        return (list(self.ask_all(group)) for group in groups)


def scorer_of(way: Way, model: object, *, served: bool) -> VlmScorer:
    """Return a scorer that asks a scripted model; images are encoded for one that is served."""
    config = TagConfig(method="vlm", tagger="scripted", endpoint=NO_SERVER, questions=way)
    scorer = VlmScorer(config)
    scorer._model = model
    scorer._served = served
    return scorer


def labelled(folder: Path, data: Path, name: str) -> list[Record]:
    """Return the images of a set that have candidates, with these as their pairs."""
    source, instances, captions = SETS[name]
    images = folder / "images"
    images.mkdir()
    for image in json.loads((data / source / instances).read_text("utf-8"))["images"]:
        Image.new("RGB", (8, 8)).save(images / image["file_name"])
    files = ["--images", images, "--annotations", data / source / instances]
    files += ["--captions", data / source / captions, "--split", "val"]
    settings = ["--set", "tag.method=all", "--set", "source.open_images=false"]
    cost_of_sgpipe("generate", "coco", *map(str, files), *settings, "--out", str(folder / "run"))
    return [record for record in iter_records(folder / "run") if record.pairs]


def relations_of(record: Record) -> list[Relation]:
    return candidates(record.pairs, None, "vlm")


def blank(record: Record) -> Image.Image:
    return Image.new("RGB", (record.width, record.height))


def tokens_of(request: ChatRequest) -> list[Token]:
    """Return the tokens of a prompt; those of an image are its number."""
    assert isinstance(request.image, Image.Image)
    width, height = request.image.size
    limits = (PIXELS["shortest_edge"], PIXELS["longest_edge"])
    rows, columns = smart_resize(height, width, FACTOR, *limits)
    image: list[Token] = [id(request.image)] * (rows // FACTOR * columns // FACTOR)
    words = re.findall(r"\w+|[^\w ]", request.text)
    return ["head"] * HEAD + image + words + ["tail"] * TAIL


def common_length(first: Sequence[Token], second: Sequence[Token]) -> int:
    """Return how many tokens both begin with."""
    for at, (token, other) in enumerate(zip(first, second, strict=False)):
        if token != other:
            return at
    return min(len(first), len(second))


@dataclass
class Prefill:
    """What is computed of prompts: images, and tokens of images and text."""

    images: int = 0
    image_tokens: int = 0
    text_tokens: int = 0

    def add(self, tokens: Sequence[Token], cached: int) -> None:
        """Count a prompt whose first `cached` tokens are there."""
        computed = tokens[cached:]
        image = sum(isinstance(token, int) for token in computed)
        self.images += image > 0
        self.image_tokens += image
        self.text_tokens += len(computed) - image


def add_prompts(requests: Sequence[ChatRequest], local: Prefill, server: Prefill, way: Way) -> None:
    """Count the prompts of an image, by a local model and by a server."""
    earlier: list[list[Token]] = []
    for request in requests:
        tokens = tokens_of(request)
        shared = max((common_length(tokens, prompt) for prompt in earlier), default=0)
        earlier.append(tokens)
        local.add(tokens, shared if way == "shared" else 0)
        server.add(tokens, shared // BLOCK * BLOCK)


def counted(name: str, records: Sequence[Record], way: Way) -> Line:
    """Return what is asked about the candidates of a set."""
    local = Prefill()
    server = Prefill()
    requests = 0
    relations = 0
    for record in records:
        model = ScriptedModel()
        asked = relations_of(record)
        scorer_of(way, model, served=False).scores(blank(record), record.objects, asked)
        add_prompts(model.requests, local, server, way)
        requests += len(model.requests)
        relations += len(asked)
    line: Line = {"page": "questions", "table": "counts", "data": name, "way": way}
    line |= {"images": len(records), "relations": relations, "requests": requests}
    for place, prefill in (("local", local), ("server", server)):
        line |= {f"{place}: {key}": value for key, value in vars(prefill).items()}
    return line


def photographs(data: Path) -> list[tuple[Record, Image.Image]]:
    """Return photographs of COCO-MINI that have candidates."""
    with TemporaryDirectory() as folder:
        records = labelled(Path(folder), data, "COCO-MINI")
    shown = []
    for record in records:
        file = data / "coco_mini" / "images_val2017" / record.file_name
        if file.exists():
            shown.append((record, Image.open(file).convert("RGB")))
    return shown


def local_scorer(folder: Path, way: Way) -> VlmScorer:
    """Return a scorer with a tiny model that sees images in the published size."""
    scorer = VlmScorer(TagConfig(method="vlm", tagger=str(folder), questions=way, device="cpu"))
    scorer.load()
    scorer._model.processor.image_processor.size = PIXELS
    return scorer


def timed(images: Sequence[tuple[Record, Image.Image]], rounds: int) -> Iterator[Line]:
    """Yield the CPU milliseconds of an image, both ways."""

    def score(scorer: VlmScorer) -> None:
        for record, image in images:
            scorer.scores(image, record.objects, relations_of(record))

    with TemporaryDirectory() as temporary:
        folder = make_vlm(Path(temporary), "qwen2_5_vl")
        scorers = {("client", way): scorer_of(way, ScriptedModel(), served=True) for way in WAYS}
        scorers |= {("model", way): local_scorer(folder, way) for way in WAYS}
        ways = {
            " ".join(name): (lambda scorer=scorer: score(scorer))
            for name, scorer in scorers.items()
        }
        seconds = medians(ways, rounds)
    for who, way in scorers:
        milliseconds = 1000 * seconds[f"{who} {way}"] / len(images)
        line: Line = {"page": "questions", "table": "CPU", "who": who, "way": way}
        yield line | {"photographs": len(images), "CPU-ms per image": round(milliseconds, 1)}


def count_table(lines: Sequence[Line], place: str) -> Table:
    table = Table(
        "data", "questions", "images", "candidates", "requests", "image prefills", "fewer",
        "image tokens", "text tokens", "tokens fewer", title=f"computed by a {WHO[place]}",
    )  # fmt: skip
    before = {line["data"]: prefills(line, place) for line in lines if line["way"] == "each"}
    for line in lines:
        images, *tokens = prefills(line, place)
        images_before, *tokens_before = before[line["data"]]
        asked = [line[name] for name in ("images", "relations", "requests")]
        table.add_row(
            str(line["data"]),
            str(line["way"]),
            *(f"{number:,}" for number in (*asked, images)),
            f"{images_before / images:.1f}x",
            *(f"{number:,}" for number in tokens),
            f"{sum(tokens_before) / sum(tokens):.1f}x",
        )
    return table


def prefills(line: Line, place: str) -> tuple[int, int, int]:
    """Return images, image tokens and text tokens."""
    images, image_tokens, text_tokens = (
        int(line[f"{place}: {key}"]) for key in ("images", "image_tokens", "text_tokens")
    )
    return images, image_tokens, text_tokens


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    data = Path(os.environ.get("SGPIPE_ORACLE", ""), "data")
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--lines", type=Path, help="file to write the figures to, as JSON lines")
    options = parser.parse_args()
    counts = []
    for name in SETS:
        with TemporaryDirectory() as folder:
            records = labelled(Path(folder), options.data, name)
        counts += [counted(name, records, way) for way in WAYS]
    costs = list(timed(photographs(options.data), options.rounds))
    table = Table("who computes", "questions", "CPU-ms per image")
    for line in costs:
        table.add_row(str(line["who"]), str(line["way"]), f"{line['CPU-ms per image']:,}")
    if options.lines:
        text = "".join(f"{json.dumps(line)}\n" for line in (*counts, *costs))
        options.lines.write_text(text, encoding="utf-8")
    report(__doc__ or "", count_table(counts, "local"), count_table(counts, "server"), table)


if __name__ == "__main__":
    main()
