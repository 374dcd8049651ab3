"""The files of docker/ are what their programs read, and call sgpipe as it wants to be called."""

import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import typer
import yaml
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config

from docker.try_run_lines import FILES
from sgpipe.cli.main import app

DOCKER = Path(__file__).parents[2] / "docker"


def commands(text: str) -> list[list[str]]:
    """Every call of sgpipe in a file, as words; options on further lines belong to it."""
    text = re.sub(r"\s*\\?\n#?\s*(?=--)", " ", text)
    calls = re.findall(r"\bsgpipe ((?:generate|label|doctor)\b[^\n\"'\]]*)", text)
    return [shlex.split(call) for call in calls]


@pytest.mark.parametrize("name", FILES)
def test_the_linter_finds_nothing(name):
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("hadolint is not installed")
    found = subprocess.run([linter, "-c", DOCKER / ".hadolint.yaml", DOCKER / name], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_kubernetes_job_runs_as_the_image_does():
    job = yaml.safe_load((DOCKER / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert str(pod["securityContext"]["runAsUser"]) in (DOCKER / "Dockerfile.gpu").read_text()
        assert pod["volumes"] == [{"name": "data", "emptyDir": {}}]
        for container in pod["containers"]:
            assert [mount["name"] for mount in container["volumeMounts"]] == ["data"]
            assert container["envFrom"] == [{"secretRef": {"name": "sgpipe-store"}}]


def test_ray_takes_the_cluster_file():
    cluster = yaml.safe_load((DOCKER / "ray-cluster.yaml").read_text())
    assert cluster["max_workers"] == len(cluster["provider"]["worker_ips"])
    validate_config(prepare_config(cluster))


@pytest.mark.parametrize("name", ["ray-cluster.yaml", "rayjob.yaml"])
def test_machines_share_no_path(name):
    text = (DOCKER / name).read_text()
    ((_, *words),) = commands(text)
    options = dict(pairwise(words))
    assert all(options[name].startswith("s3://") for name in ("--root", "--captioner", "--tagger", "--store"))
    assert "persistentVolume" not in text
    assert not re.search(r"volume=/", text)


def test_every_machine_of_a_cluster_has_its_token_and_no_file_does():
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"].values()
    for variables in (service["environment"] for service in services):
        assert variables["RAY_AUTH_MODE"] == "token"
        assert variables["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
    options = yaml.safe_load((DOCKER / "ray-cluster.yaml").read_text())["docker"]["run_options"]
    assert {"--env=RAY_AUTH_MODE=token", "--env-file=$HOME/sgpipe.env"} <= set(options)
    cluster = yaml.safe_load((DOCKER / "rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert Version("2.52") <= Version(cluster["rayVersion"])  # KubeRay refuses older ones


@pytest.mark.parametrize("name", ["compose.yaml", "ray-cluster.yaml", "rayjob.yaml"])
def test_sgpipe_is_called_with_options_it_has(name):
    found = commands((DOCKER / name).read_text())
    assert found
    group = typer.main.get_command(app)
    for name_, *arguments in found:
        command = group.commands[name_]
        command.make_context(name_, arguments, resilient_parsing=False)
