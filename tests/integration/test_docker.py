"""The files of docker/ are what their programs read, and call sgpipe as it wants to be called."""

import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config

from docker.try_run_lines import FILES
from sgpipe.cli.main import app
from tests.values import values_of

DOCKER = Path(__file__).parents[2] / "docker"


def load(name: str) -> Any:
    return yaml.safe_load((DOCKER / name).read_text())


@pytest.mark.parametrize("name", FILES)
def test_the_linter_finds_nothing(name):
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("hadolint is not installed")
    linted = subprocess.run(
        [linter, "-c", DOCKER / ".hadolint.yaml", DOCKER / name], capture_output=True, text=True
    )
    assert (linted.returncode, linted.stdout) == (0, "")


def test_ray_takes_the_cluster_file():
    cluster = load("ray-cluster.yaml")
    assert cluster["max_workers"] == len(cluster["provider"]["worker_ips"])
    validate_config(prepare_config(cluster))


def test_every_machine_of_a_cluster_has_its_token_and_no_file_does():
    for variables in values_of(load("compose.yaml")["services"].values(), "environment"):
        assert variables["RAY_AUTH_MODE"] == "token"
        assert variables["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
    options = load("ray-cluster.yaml")["docker"]["run_options"]
    assert {"--env=RAY_AUTH_MODE=token", "--env-file=$HOME/sgpipe.env"} <= set(options)
    cluster = load("rayjob.yaml")["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert Version("2.52") <= Version(cluster["rayVersion"])  # KubeRay refuses older ones
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        security = group["template"]["spec"]["securityContext"]
        assert security["runAsNonRoot"]
        assert str(security["runAsUser"]) in (DOCKER / "Dockerfile.gpu").read_text()


@pytest.mark.parametrize("name", ["compose.yaml", "ray-cluster.yaml", "rayjob.yaml"])
def test_sgpipe_is_called_with_options_it_has_and_machines_share_no_path(name):
    # options on further lines
    text = re.sub(r"\s*\\?\n#?\s*(?=--)", " ", (DOCKER / name).read_text())
    calls = re.findall(r"\bsgpipe ((?:generate|label|doctor)\b[^\n\"'\]]*)", text)
    assert calls
    for command, *words in map(shlex.split, calls):
        typer.main.get_command(app).commands[command].make_context(command, list(words))
        if name != "compose.yaml":
            options = dict(pairwise(words))
            assert all(
                options[key].startswith("s3://")
                for key in ("--root", "--captioner", "--tagger", "--store")
            )
