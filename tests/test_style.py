"""House rules that no linter knows: sizes, unsafe loading, paths of one machine, unique class names."""

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("rlip_model", "sgpipe", "experiments")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
EVERYTHING = sorted({*SOURCES, *(path for name in ("tests", "benchmarks") for path in (ROOT / name).rglob("*.py"))})
LONGEST_FILE, LONGEST_FUNCTION = 600, 100

UNSAFE_CALLS = {
    *(f"{module}.{name}" for module in ("pickle", "dill", "cloudpickle") for name in ("load", "loads", "Unpickler")),
    *(f"yaml.{name}" for name in ("load", "load_all", "full_load", "unsafe_load", "unsafe_load_all")),
    *("joblib.load", "marshal.load", "marshal.loads", "shelve.open", "eval", "exec", "pd.read_pickle"),
}
# Label Studio serves images at /data/local-files/ and /data/upload/.
MACHINE_PATH = re.compile(r"(?<![\w.~/}:])/(home|root|work|mnt|Users|data(?!/(local-files|upload)/)|scratch)/")


def too_long(source: str) -> Iterator[str]:
    if (lines := source.count("\n")) > LONGEST_FILE:
        yield f"{lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > LONGEST_FUNCTION:
                yield f"line {node.lineno}: {node.name} has {length} lines"


def unsafe_calls(source: str) -> Iterator[str]:
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    yield from (f"line {call.lineno}: {ast.unparse(call)}" for call in calls if _is_unsafe(call))


def _is_unsafe(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name == "torch.load":
        return options.get("weights_only") != "True"
    if name in ("np.load", "numpy.load"):
        return options.get("allow_pickle", "False") != "False"
    return name in UNSAFE_CALLS or options.get("trust_remote_code", "False") != "False"


def machine_paths(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and MACHINE_PATH.search(node.value):
            yield f"line {node.lineno}: {node.value!r}"


def faults(paths: list[Path], rule: Callable[[str], Iterator[str]]) -> list[str]:
    return [f"{path.relative_to(ROOT)}, {fault}" for path in paths for fault in rule(path.read_text(encoding="utf-8"))]


def test_files_and_functions_can_be_read_in_one_go() -> None:
    assert faults(EVERYTHING, too_long) == []


def test_no_call_runs_code_from_a_file() -> None:
    assert faults(SOURCES, unsafe_calls) == []


def test_no_path_of_one_machine() -> None:
    assert faults([path for path in EVERYTHING if path != Path(__file__)], machine_paths) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_public_class_name_occurs_twice(package: str) -> None:
    found = defaultdict(list)
    for path in SOURCES:
        if path.is_relative_to(ROOT / package):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(path.name)
    assert {name: files for name, files in found.items() if len(files) > 1} == {}
