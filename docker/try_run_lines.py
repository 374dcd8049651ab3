"""Try every RUN line of the Dockerfiles on a Debian machine without docker:  python docker/try_run_lines.py FOLDER

The steps of each file are done in FOLDER, an empty one: COPY copies there, and RUN runs with PREFIX there. Nothing else
of the machine is changed: packages of apt are only looked up, and the user is made in a system tree of its own. A line
that fails ends the script, which says which one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = ("Dockerfile", "Dockerfile.gpu")


def steps(text: str) -> list[tuple[str, str]]:
    """Instruction and arguments, line continuations joined."""
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [
        (line.split(" ", 1)[0], line.split(" ", 1)[1])
        for line in lines
        if re.match(r"[A-Z]+ ", line)
    ]


def harmless(command: str, system: Path) -> str:
    """The command without what would change the machine."""
    command = command.replace("apt-get update", "true").replace(
        "rm -rf /var/lib/apt/lists/*", "true"
    )
    command = command.replace("apt-get install", "apt-get install --simulate")
    command = command.replace("useradd ", f"useradd --prefix {system} ")
    return command.replace(" /data", f" {system}/data")


def make_system(place: Path) -> Path:
    """The least that `useradd --prefix` wants."""
    (place / "etc").mkdir(parents=True)
    (place / "home").mkdir()
    for name in ("passwd", "group", "shadow", "gshadow"):
        (place / "etc" / name).touch()
    return place


def try_file(path: Path, place: Path) -> None:
    source, variables = place / "src", {"PREFIX": str(place / "prefix")}
    source.mkdir(parents=True)
    system = make_system(place / "system")
    for name, arguments in steps(path.read_text(encoding="utf-8")):
        if name == "ARG":
            key, _, value = arguments.partition("=")
            variables.setdefault(key, os.environ.get(key, value))
        elif name == "COPY" and not arguments.startswith("--from"):
            *sources, target = arguments.split()
            for each in sources:
                copy(ROOT / each, source / target / (each if target == "./" else ""))
        elif name == "RUN":
            print(f"{path.name}: {arguments}", flush=True)
            command = ["sh", "-ec", harmless(arguments, system)]
            if subprocess.run(command, cwd=source, env={**os.environ, **variables}).returncode:
                sys.exit(f"{path.name}: this line failed: {arguments}")
    subprocess.run([place / "prefix/bin/sgpipe", "doctor"], cwd=place, check=True)


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def main() -> None:
    place = Path(sys.argv[1])
    place.mkdir(parents=True)
    for name in FILES:
        try_file(ROOT / "docker" / name, place / name)
        shutil.rmtree(place / name)
    print("every RUN line works")


if __name__ == "__main__":
    main()
