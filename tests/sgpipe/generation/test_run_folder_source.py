"""`sgpipe generate` on images without annotations."""

import pytest
from typer.testing import CliRunner

from sgpipe import Pipeline
from sgpipe.cli.main import app
from sgpipe.miniworld.dataset import IMAGES, render_dataset
from sgpipe.storage.shards import iter_records
from sgpipe.storage.verify import verify


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["generate", *(str(argument) for argument in arguments)])


@pytest.mark.slow
def test_a_folder_is_labelled_as_its_images_one_by_one(tmp_path):
    render_dataset(tmp_path / "drawn", 8, seed=3)
    images, out = tmp_path / "drawn" / IMAGES, tmp_path / "out"
    result = invoke("miniworld", "--images", images, "--set", "source.format=folder", "--out", out)
    assert result.exit_code == 0, result.output
    found = list(iter_records(out))
    assert verify(out).ok
    for record, graph in zip(found, Pipeline().label(sorted(images.iterdir())), strict=True):
        assert record.image_id == graph.record.image_id
        assert record.objects == graph.objects
        assert record.captions == graph.captions
        assert record.relations == graph.record.relations
    assert sum(len(record.objects) for record in found) > 8
    again = invoke("miniworld", "--images", images, "--set", "source.format=folder", "--out", out)
    assert again.exit_code == 0
    other = ["--set", "detect.threshold=0.6"]
    refused = invoke("miniworld", "--images", images, "--set", "source.format=folder", "--out", out, *other)
    assert "detect.threshold: 0.5 then, 0.6 now" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["coco", "--images", "{images}", "--tagger", "t"], "no boxes: pass --annotations"),
        (["folder", "--images", "{images}"], "tag.tagger is not set"),
        (["folder", "--tagger", "t"], "the recipe names no data"),
        (["coco", "--annotations", "a.json", "--tagger", "t"], "need --images"),
        (
            ["folder", "--images", "{images}", "--annotations", "a.json", "--tagger", "t"],
            "is for images without annotations",
        ),
        (
            ["folder", "--images", "{images}", "--tagger", "t", "--set", "detect.detector=null"],
            "detect.detector is not set",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, arguments, reason):
    (tmp_path / "images").mkdir()
    given = [argument.format(images=tmp_path / "images") for argument in arguments]
    result = invoke(*given, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert reason in result.stderr
