"""Images of Dockerfiles, built and run by buildah: without a daemon and a registry, in one folder of the machine."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from docker.try_run_lines import steps

ROOT = Path(__file__).parents[3]
_PROGRAMS = ("buildah", "debootstrap", "ip", "netavark", "unshare")
_LIMITS = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
_PACKAGES = "ca-certificates,python3,python3-venv"
# Of a command that is killed, no process and no mount stays.
_ALONE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
_WITHOUT_NETWORK = (*_ALONE, "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


def why_impossible() -> str | None:
    """Why images cannot be built here; None: they can."""
    if os.geteuid():
        return "images are built by root only"
    path = f"{os.environ['PATH']}:/usr/lib/podman"
    missing = [name for name in _PROGRAMS if shutil.which(name, path=path) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


class Images:
    """Images and containers in a folder of their own, which is gone after the `with` statement with all its mounts."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="sgpipe-", dir="/var/tmp"))  # tens of gigabytes: not in memory
        # What buildah sets by default may be more than this machine allows.
        limits = ["{}={}:{}".format(name, *resource.getrlimit(number)) for name, number in _LIMITS.items()]
        (self._folder / "containers.conf").write_text(f"[containers]\ndefault_ulimits = {json.dumps(limits)}\n")
        (self._folder / "registries.conf").write_text('unqualified-search-registries = ["docker.io"]\n')

    def __enter__(self) -> Images:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
        for mount in reversed(mounts):  # the innermost first
            if Path(mount).is_relative_to(self._folder):
                subprocess.run(["umount", mount], check=True)
        shutil.rmtree(self._folder)

    def make_base(self, dockerfile: Path) -> None:
        """An image with the name of the one that a Dockerfile starts from, of Debian's own Python.

        Raises AssertionError: Debian has another version of Python than the name says.
        """
        name = next(arguments.split()[0] for step, arguments in steps(dockerfile.read_text()) if step == "FROM")
        python, _, release = name.removeprefix("python:").split("-")
        root = self._folder / "base"
        _run(*_ALONE, "debootstrap", "--variant=minbase", f"--include={_PACKAGES}", release, root)
        assert (root / f"usr/bin/python{python}").exists(), f"Debian {release} has no Python {python}"
        _copy_settings_of_pip(root)
        made = self.buildah("from", "scratch").strip()
        self.buildah("add", made, root, "/")
        self.buildah("commit", "--rm", made, f"docker.io/library/{name}")
        shutil.rmtree(root)

    def build(self, dockerfile: Path, name: str) -> None:
        """Build an image, with the arguments of the Dockerfile that are in the environment."""
        declared = {arguments.partition("=")[0] for step, arguments in steps(dockerfile.read_text()) if step == "ARG"}
        given = [f"--build-arg={argument}={os.environ[argument]}" for argument in declared if argument in os.environ]
        how = ("--isolation=chroot", "--network=host", "--pull=never", "--format=docker", "--layers=false")
        self.buildah("build", *how, *given, "--file", dockerfile, "--tag", name, ROOT)

    def config(self, name: str) -> dict[str, Any]:
        """What Docker knows of an image: `User`, `Entrypoint`, `Cmd`, ..."""
        return dict(json.loads(self.buildah("inspect", "--type=image", name))["Docker"]["config"])

    def container(self, name: str) -> tuple[str, Path]:
        """A container of an image, and its root folder."""
        made = self.buildah("from", "--pull=never", name).strip()
        return made, Path(self.buildah("mount", made, prefix=()).strip())

    def run(self, container: str, *command: str) -> str:
        """What a command prints that runs as the user of the image, without a network."""
        run = ("run", "--isolation=chroot", "--network=host", container, "--", *command)
        return self.buildah(*run, prefix=_WITHOUT_NETWORK)

    def buildah(self, *arguments: object, prefix: tuple[str, ...] = _ALONE) -> str:
        """What buildah prints. Raises AssertionError: it fails."""
        storage = (f"--root={self._folder / 'storage'}", f"--runroot={self._folder / 'run'}")
        own = {
            "CONTAINERS_CONF": str(self._folder / "containers.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(self._folder / "registries.conf"),
            "TMPDIR": str(self._folder),
        }
        return _run(*prefix, "buildah", *storage, *arguments, environment=own)


def _copy_settings_of_pip(root: Path) -> None:
    """Give a system the settings of this machine's pip, with the files that they name.

    Not the folders of wheels: these may need libraries that the system does not have.
    """
    listed = (line.partition("=") for line in _run(sys.executable, "-m", "pip", "config", "list").splitlines())
    settings: dict[str, str] = {}
    for name, _, value in listed:  # variables are listed before files, and count more
        settings.setdefault(name.rpartition(".")[2], value.strip("'"))
    settings.pop("find-links", None)
    for file in map(Path, settings.values()):
        if file.is_file():
            (copy := root / file.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    lines = ["[global]", *(f"{name} = {value}" for name, value in settings.items())]
    (root / "etc/pip.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _run(*command: object, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], env=os.environ | (environment or {}), capture_output=True, text=True
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done.stdout
