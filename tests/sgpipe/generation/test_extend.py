"""`sgpipe generate --extend`: runs and imports whose relations are kept and completed."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from rlip_model.text import build_tokenizer
from sgpipe.export.run import export_run
from sgpipe.miniworld.dataset import IMAGES, SCENE_GRAPHS, render_dataset
from sgpipe.recipe import PairConfig
from sgpipe.records import NO_OBJECT, Box, Record, Relation
from sgpipe.sources.corrected import correct_run
from sgpipe.sources.miniworld import import_graphs
from sgpipe.sources.vocabulary import load_equivalents
from sgpipe.stages.pair import PairStage
from sgpipe.stages.tag.stage import text_to_read
from sgpipe.storage.judgement_lines import Judgement
from sgpipe.storage.judgements import JudgementLog
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.shards import write_shard
from sgpipe.storage.verify import verify
from sgpipe.training.data.scan import scan_training
from sgpipe.training.data.stream import StepStream
from sgpipe.training.recipe import DataConfig
from sgpipe.utils.console import Progress
from tests.integration.faults.conftest import server, sgpipe, store  # noqa: F401 - fixtures
from tests.sgpipe.cli.test_imports import FILES, TRIPLETS, invoke, options
from tests.sgpipe.generation.in_process import RAN, rows
from tests.sgpipe.sources.scene_graph_files import GRAPH, svg_form
from tests.sgpipe.stages.pair.test_pair import record
from tests.values import values_of

pytestmark = pytest.mark.usefixtures("in_this_process")

COUNT = 6
EQUIVALENTS = load_equivalents(None)

ATTRIBUTED = (
    "VG-SGG-with-attri.h5 --dicts VG-SGG-dicts-with-attri.json --image-data image_data.json"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Images of the miniworld; `known`: an import of half of their relations, and of some that are
    odd.
    """
    folder = tmp_path_factory.mktemp("world")
    render_dataset(folder / "drawn", COUNT, 5, "val")
    graphs = json.loads((folder / "drawn" / SCENE_GRAPHS).read_text())
    for number, graph in enumerate(graphs):
        graph["relationships"] = graph["relationships"][::2]
        thing = graph["objects"][0]["object_id"]
        if not number:
            graph["relationships"].append(
                {"predicate": "near", "subject_id": thing, "object_id": thing}
            )
            graph["relationships"].append(
                {"predicate": "x" * 300, "subject_id": thing, "object_id": thing}
            )
            graph["objects"].append(
                {"object_id": -1, "x": 0, "y": 0, "w": 9, "h": 9, "names": "n" * 300}
            )
    (folder / "known.json").write_text(json.dumps(graphs))
    import_graphs(folder / "known.json", "val", folder / "known", folder / "drawn" / IMAGES)
    return folder


def extend(run: object, out: Path, *more: object, code: int = 0) -> str:
    """What it says on standard error."""
    done = invoke("generate", "--extend", run, "--out", out, "--set", "caption.samples=2", *more)
    assert done.exit_code == code, done.output
    return done.stderr


def assert_kept(parent: Sequence[Record], child: Sequence[Record]) -> int:
    """Boxes and relations are the parent's, and nothing added says what one of them says; how many
    were added.
    """
    added = 0
    for before, after in zip(parent, child, strict=True):
        for name in ("image_id", "split", "file_name", "objects"):
            assert getattr(after, name) == getattr(before, name)
        if not after.ok:
            continue
        first = after.relations[: len(before.relations)]
        new = after.relations[len(before.relations) :]
        assert first == before.relations
        stated = {
            EQUIVALENTS.key(relation.subject, relation.predicate, relation.object)
            for relation in first
        }
        assert not stated & {
            EQUIVALENTS.key(relation.subject, relation.predicate, relation.object)
            for relation in new
        }
        assert all(relation.confidence is not None for relation in new)
        added += len(new)
    return added


@pytest.fixture(scope="module")
def extended(world) -> Path:
    extend(world / "known", world / "extended", "miniworld")
    return world / "extended"


def test_known_relations_stay_and_others_are_added_once(world, extended, tmp_path):
    assert assert_kept(rows(world / "known"), rows(extended)) > 0
    assert verify(extended).ok
    before, now = (Manifest.load(folder).run for folder in (world / "known", extended))
    assert now["identity"]["source"]["val"]["run"] == before["fingerprint"]
    assert now["origin"] == [before["identity"]]
    assert "nothing left to do" in extend(world / "known", extended, "miniworld")
    import_graphs(world / "drawn" / SCENE_GRAPHS, "val", tmp_path / "all", world / "drawn" / IMAGES)
    assert "source.val.run" in extend(tmp_path / "all", extended, "miniworld", code=2)
    for more in (("--limit", 2), ()):  # stopped, and resumed
        extend(world / "known", tmp_path / "out", "miniworld", "--set", "engine.unit_size=1", *more)
    assert rows(tmp_path / "out") == rows(extended)


def test_a_run_is_extended_by_its_own_recipe_and_captions_unless_there_is_another_captioner(
    extended, tmp_path
):
    RAN.clear()
    extend(extended, tmp_path / "a", "--set", "pair.candidates=image")
    assert RAN == ["load", "parse", "pair", "tag"]
    assert values_of(rows(tmp_path / "a"), "captions") == values_of(rows(extended), "captions")
    assert assert_kept(rows(extended), rows(tmp_path / "a")) > 0
    RAN.clear()
    extend(extended, tmp_path / "b", "--captioner", "MINIWORLD", "--seed", "3")
    assert RAN[0] == "caption"
    assert values_of(rows(tmp_path / "b"), "captions") != values_of(rows(extended), "captions")


@pytest.mark.slow
def test_the_certified_relations_of_a_run_and_its_corrected_copy_are_extended(extended, tmp_path):
    run = shutil.copytree(extended, tmp_path / "run")
    assert "has no certificate" in extend(run, tmp_path / "none", "--certified", code=2)
    highest = max(relation.confidence or 0 for record in rows(run) for relation in record.relations)
    certify = ("certify", run, "--precision", "0.5", "--threshold", str(highest))
    while invoke(*certify).exit_code == 1:
        log = JudgementLog(run / "judgements.jsonl", Manifest.load(run).run["fingerprint"])
        for number, question in enumerate(
            question for plan in log.plans.values() for question in plan.questions
        ):
            values = {"at": "", "by": "anna", "run": log.fingerprint, "judgement": "right"}
            log.append(Judgement(id=f"a{number}", **values, **question.key._asdict()))
    [certified] = json.loads((run / "certificate.json").read_text())["sets"]
    extend(run, tmp_path / "out", "miniworld", "--certified")
    records = rows(run)
    for before in records:
        before.relations = [
            r
            for r in before.relations
            if r.confidence is None or r.confidence >= certified["threshold"]
        ]
    assert (
        0
        < sum(len(before.relations) for before in records)
        < sum(len(row.relations) for row in rows(run))
    )
    assert_kept(records, rows(tmp_path / "out"))
    log = JudgementLog(run / "judgements.jsonl", Manifest.load(run).run["fingerprint"])
    correct_run(Manifest.load(run), run, log, tmp_path / "corrected", Progress(Console(quiet=True)))
    extend(
        tmp_path / "corrected", tmp_path / "again", "miniworld", "--set", "pair.candidates=image"
    )
    assert assert_kept(rows(tmp_path / "corrected"), rows(tmp_path / "again")) > 0
    extend(
        run, tmp_path / "set", "miniworld", "--set", f"source.threshold={certified['threshold']}"
    )
    extend(run, tmp_path / "all", "miniworld")
    fingerprints = [
        Manifest.load(tmp_path / name).run["fingerprint"] for name in ("out", "set", "all")
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert "pass --extend" in invoke(
        "generate", "--certified", "--out", tmp_path / "x"
    ).output.replace("\n", " ")


@pytest.mark.parametrize("kind", FILES)
def test_each_import_is_extended(kind, tmp_path):
    (tmp_path / f"{kind}_train.json").write_text(json.dumps(FILES[kind]))
    (tmp_path / "rel.json").write_text(json.dumps(TRIPLETS))
    sgpipe(*options(tmp_path, kind), "--out", tmp_path / "run")
    [known] = rows(tmp_path / "run")
    image = tmp_path / known.file_name
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (known.width, known.height)).save(image)
    extend(tmp_path / "run", tmp_path / "out", "miniworld")
    assert all(values_of(rows(tmp_path / "out"), "ok"))
    assert_kept([known], rows(tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "psg --annotations psg.json --split all",
        f"vg150 --split all --annotations {ATTRIBUTED}",
        "coco --annotations instances_val.json",
        "label-studio --annotations val.json --predictions",
        "svg --annotations sg.json --split val",
        "gbc --annotations graphs.json",
    ],
)
def test_each_form_is_imported_and_extended(command, tmp_path, world, monkeypatch):
    """With its class lists, to which what is added may not belong."""
    form = command.split()[0]
    known = rows(world / "known")
    monkeypatch.chdir(tmp_path)
    if form in ("svg", "gbc"):
        content = (
            svg_form(known)
            if form == "svg"
            else [{**GRAPH, "img_path": known[0].file_name, "img_size": None}]
        )
        (tmp_path / command.split()[2]).write_text(json.dumps(content))
    else:
        monkeypatch.chdir(export_run(world / "known", form, tmp_path / "form").root)
    sgpipe(
        "import", *command.split(), "--images", world / "drawn" / IMAGES, "--out", tmp_path / "run"
    )
    extend(tmp_path / "run", tmp_path / "out", "miniworld")
    assert (assert_kept(rows(tmp_path / "run"), rows(tmp_path / "out")) > 0) == (form != "gbc")
    before, after = (Manifest.load(tmp_path / name).run.get("labels") for name in ("run", "out"))
    assert after == before
    assert (before is not None) == (form in ("psg", "vg150"))
    [file] = export_run(tmp_path / "out", "sgg-benchmark", tmp_path / "again").root.glob(
        "*/_annotations.coco.json"
    )
    names = values_of(json.loads(file.read_text())["rel_categories"], "name")
    assert not before or names[: len(before["relations"])] == before["relations"]
    assert len(set(names)) == len(names)


def test_images_in_the_shards_are_found_there(world, extended, tmp_path):
    graphs = [
        "import",
        "vg",
        "--annotations",
        world / "known.json",
        "--images",
        world / "drawn" / IMAGES,
    ]
    sgpipe(*graphs, "--no-preprocess", "--split", "val", "--embed", "--out", tmp_path / "run")
    dataset = export_run(tmp_path / "run", "hf", tmp_path / "hub").root
    sgpipe("import", "hf", "--annotations", dataset, "--out", tmp_path / "again")
    shutil.rmtree(dataset)
    for run in ("run", "again"):
        extend(tmp_path / run, tmp_path / f"{run}-out", "miniworld")
        assert rows(tmp_path / f"{run}-out") == rows(extended)


def test_error_rows_stay_unless_a_stage_that_runs_again_made_them(world, tmp_path):
    folder = RunFolder(tmp_path / "run")
    records = rows(world / "known")
    records[1].fail("import", "no size")
    records[2].fail("tag", "once more")
    with folder.lock():
        manifest = folder.open(
            {"identity": {"import": "vg"}, "images": {"val": str(world / "drawn" / IMAGES)}}
        )
        manifest.commit(
            write_shard(folder.root, "data/val-000000000-000000006.parquet", "val", 0, records, {})
        )
    extend(folder.root, tmp_path / "out", "miniworld")
    extended_rows = rows(tmp_path / "out")
    assert [row.error for row in extended_rows if not row.ok] == ["import: no size"]
    assert_kept(
        [record for record in records if record.error != "tag: once more"],
        [extended_rows[0], *extended_rows[1:2], *extended_rows[3:]],
    )


@pytest.mark.slow
def test_parent_and_run_may_be_in_stores(world, extended, tmp_path, store):  # noqa: F811
    import_graphs(world / "known.json", "val", tmp_path / "known", world / "drawn" / IMAGES)
    first = f"{store.uri}/first"
    second = f"{store.uri}/second"
    few = ("--set", "source.miniworld.images=4", "--set", "caption.samples=2")
    sgpipe("generate", "miniworld", *few, "--out", tmp_path / "first", "--store", first)
    extend(first, tmp_path / "second", "miniworld", "--store", second)
    extend(tmp_path / "first", tmp_path / "here", "miniworld")
    sgpipe("fetch", second, "--out", tmp_path / "x")
    assert rows(tmp_path / "x") == rows(tmp_path / "here") != []
    assert_kept(rows(first), rows(tmp_path / "x"))
    for number, parent in enumerate((tmp_path / "first", first)):
        changed = ("--set", "pair.candidates=image", "--set", "tag.threshold=0.3")
        sgpipe("generate", "--from", parent, "--out", tmp_path / f"from{number}", *changed)
    assert rows(tmp_path / "from0") == rows(tmp_path / "from1") != []


def test_bad_input_is_refused_in_one_line(world, extended, tmp_path):
    (tmp_path / "own.yaml").write_text("synonyms: {holding: [held by]}\n")
    (tmp_path / "empty").mkdir()
    moved, unfinished, damaged = (
        shutil.copytree(world / "known", tmp_path / name)
        for name in ("moved", "unfinished", "damaged")
    )
    for copy, changes in (
        (unfinished, {"finished": False}),
        (moved, {"images": {"val": str(tmp_path / "gone")}}),
    ):
        manifest = Manifest.load(copy)
        manifest.run |= changes
        manifest.rewrite()
    shard = next((damaged / "data").glob("*.parquet"))
    content = shard.read_bytes()
    shard.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    known = world / "known"
    new = tmp_path / "new"
    for run, out, more, expected in (
        (known, known, (), "is read by this command"),
        (
            known,
            new,
            ("--from", extended),
            "--from takes stages over from a run, --extend relations",
        ),
        (tmp_path / "empty", new, (), "is not an sgpipe run"),
        (unfinished, new, (), "is not complete: finish it first"),
        (moved, new, (), "if the images moved, pass --images"),
        (damaged, new, (), "is missing or damaged"),
        (known, new, ("--set", "pair.restrict=group"), "not with --extend"),
        (
            known,
            new,
            ("--set", f"pair.equivalents={tmp_path / 'own.yaml'}"),
            "'held by' is both the same as 'holding'",
        ),
        (
            known,
            new,
            ("--set", "caption.captioner=null", "--set", "pair.known=0"),
            "has no captions",
        ),
        (known, new, ("--images", tmp_path / "empty"), "has no image of the split val"),
    ):
        lines = extend(run, out, "miniworld", *more, code=2).splitlines()
        assert expected in " ".join(" ".join(lines).replace("│", " ").split()), lines
        assert not any("Traceback" in line for line in lines)
        assert not new.exists()
    assert "--extend needs --out" in sgpipe("generate", "miniworld", "--extend", known, code=2)
    with RunFolder(known).lock():
        assert "another process is writing into" in extend(known, new, "miniworld", code=2)
    extend(moved, new, "miniworld", "--images", world / "drawn" / IMAGES)
    assert rows(new) == rows(extended)


def candidates(
    source: Record, triplets: list, **settings: object
) -> dict[tuple[int, int], list[str]]:
    classes = set(values_of(source.objects, "category")) | {"lady", "dog", "bike"}
    stage = PairStage(PairConfig(**settings), "coco", classes, triplets)
    stage.setup()
    [paired] = stage([source])
    return {(pair.subject, pair.object): pair.predicates for pair in paired.pairs}


def test_captions_and_the_runs_own_predicates_are_candidates_by_the_kind_of_a_name():
    source = record(
        ["young lady", "red bike"], [("a man", "rides", "a bicycle"), ("a boy", "beside", "a bike")]
    )
    known = [
        ("lady", "next to", "bike", 3),
        ("lady", "pushing", "bike", 2),
        ("lady", "leading", "dog", 1),
    ]
    assert candidates(source, known) == {(0, 1): ["next to", "pushing", "rides"]}
    assert candidates(source, known, known=1) == {(0, 1): ["next to", "rides"]}
    assert candidates(source, known, known=0) == {(0, 1): ["rides", "beside"]}


def test_a_missing_object_and_what_is_known_are_no_candidates():
    source = record(["person", "dog"], [("a person", "near", "a dog")])
    source.objects.append(Box(NO_OBJECT, 2, (0.0, 0.0, 0.0, 0.0)))
    known = [
        ("person", "smile", NO_OBJECT, 5),
        ("person", "walking", "dog", 2),
        ("dog", "walked by", "person", 2),
    ]
    source.relations = [Relation(1, 0, "next to"), Relation(0, 1, "is walking")]
    assert candidates(source, known) == {}


def test_a_tagger_reads_a_class_that_it_knows_in_place_of_words_that_it_does_not():
    tokenizer = build_tokenizer(
        ["person bicycle dining table cup dog chair bench horse kite car cat bird umbrella"]
    )
    names = {
        "lady": "person",
        "red bike": "bicycle",
        "mug": "cup",
        "dog": "dog",
        "lamp post": "lamp post",
    }
    assert {name: text_to_read(name, tokenizer) for name in names} == names


def counts(run: Path) -> Counter[str]:
    return Counter(relation.origin for row in rows(run) for relation in row.relations)


def test_origins_are_counted_and_exported(extended, world, tmp_path):
    statistics = json.loads(sgpipe("stats", extended, "--json"))
    assert Counter(statistics["origins"]) == counts(extended)
    assert set(counts(extended)) == {"annotated", "tagger"}
    origin = ("--origin", "annotated", "--threshold", "0")
    output = sgpipe("export", extended, "--to", "hf", "--out", tmp_path / "hf", *origin)
    assert f"left out: relations of other origins ({counts(extended)['tagger']})" in output
    readme = (tmp_path / "hf" / "README.md").read_text()
    assert f"Origin of the relations: annotated {counts(extended)['annotated']}." in readme
    images = ("--images", world / "drawn" / IMAGES)
    sgpipe("import", "hf", "--annotations", tmp_path / "hf", *images, "--out", tmp_path / "again")
    assert values_of(rows(tmp_path / "again"), "relations") == values_of(
        rows(world / "known"), "relations"
    )


def test_relations_count_by_the_weight_of_their_origin_in_training(extended):
    data = DataConfig.model_validate(
        {"train": [{"shards": str(extended)}], "origins": {"tagger": 0.25}}
    )
    stream = StepStream(scan_training(data), data, batch=COUNT, seed=0, max_relations=100)

    def labels(epochs: int) -> Counter[str]:
        items = (
            item
            for epoch in range(epochs)
            for step in stream.epoch(epoch)
            for part in step
            for item in part.items
        )
        return Counter(relation.origin for item in items for relation in item.graph.relations)

    relations = [relation for row in rows(extended) for relation in row.relations]
    usable = Counter(
        relation.origin for relation in relations if (relation.confidence or 1) >= data.threshold
    )
    seen = labels(200)
    assert seen["annotated"] == 200 * usable["annotated"]
    assert seen["tagger"] / (200 * usable["tagger"]) == pytest.approx(0.25, abs=0.06)
    assert labels(3) == labels(3)
