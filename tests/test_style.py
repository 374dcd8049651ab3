"""The house rules that a linter does not know: sizes, unsafe loading, paths of one machine, who imports whom."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("rlip_model", "sgpipe")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
EVERYTHING = sorted({*SOURCES, *(path for name in ("tests", "benchmarks") for path in (ROOT / name).rglob("*.py"))})
LONGEST_FILE, LONGEST_FUNCTION = 500, 60

UNSAFE_CALLS = {
    *(f"{module}.{name}" for module in ("pickle", "dill", "cloudpickle") for name in ("load", "loads", "Unpickler")),
    *(f"yaml.{name}" for name in ("load", "load_all", "full_load", "unsafe_load", "unsafe_load_all")),
    *("joblib.load", "marshal.load", "marshal.loads", "shelve.open", "eval", "exec", "pd.read_pickle"),
}
MACHINE_PATH = re.compile(r"(?<![\w.~/}:])/(home|root|work|mnt|Users|data|scratch)/")
NOT_FOR_THE_NETWORK = {"sgpipe", "ray", "pyarrow", "typer", "rich", "pydantic", "yaml"}


def long_functions(source: str) -> list[str]:
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    return [
        f"line {node.lineno}: {node.name} has {length} lines"
        for node in functions
        if (length := (node.end_lineno or node.lineno) - node.lineno + 1) > LONGEST_FUNCTION
    ]


def unsafe_calls(source: str) -> list[str]:
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [f"line {call.lineno}: {ast.unparse(call)}" for call in calls if _is_unsafe(call)]


def _is_unsafe(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name == "torch.load":
        return options.get("weights_only") != "True"
    if name in ("np.load", "numpy.load"):
        return options.get("allow_pickle", "False") != "False"
    return name in UNSAFE_CALLS or options.get("trust_remote_code", "False") != "False"


def machine_paths(source: str) -> list[str]:
    strings = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    found = [node for node in strings if isinstance(node.value, str) and MACHINE_PATH.search(node.value)]
    return [f"line {node.lineno}: {node.value!r}" for node in found]


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_read() -> None:
    assert {name(path) for path in SOURCES} >= {"rlip_model/model.py", "rlip_model/fusion.py", "sgpipe/cli/main.py"}


@pytest.mark.parametrize("path", EVERYTHING, ids=name)
def test_files_and_functions_can_be_read_in_one_go(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= LONGEST_FILE
    assert not long_functions(source)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_that_runs_code_of_a_file_is_called(path: Path) -> None:
    assert not unsafe_calls(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", EVERYTHING, ids=name)
def test_no_path_of_somebodys_machine(path: Path) -> None:
    if path != Path(__file__):
        assert not machine_paths(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [path for path in SOURCES if path.is_relative_to(ROOT / "rlip_model")], ids=name)
def test_the_network_knows_nothing_of_the_pipeline(path: Path) -> None:
    assert NOT_FOR_THE_NETWORK.isdisjoint(imported(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "pickle.loads(data)",
        "yaml.load(text, Loader=yaml.Loader)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "eval(text)",
    ],
)
def test_the_rule_about_loading_finds(source: str) -> None:
    assert unsafe_calls(source)


@pytest.mark.parametrize(
    "source", ["torch.load(path, weights_only=True)", "yaml.safe_load(text)", "np.load(path)", "model.eval()"]
)
def test_the_rule_about_loading_allows(source: str) -> None:
    assert not unsafe_calls(source)


def test_the_other_rules_find_what_they_are_for() -> None:
    assert long_functions("def f():\n" + "    pass\n" * 60) == ["line 1: f has 61 lines"]
    assert not long_functions("def f():\n" + "    pass\n" * 59)
    assert machine_paths("path = '/home/me/coco'")
    assert machine_paths("def f():\n    'reads /mnt/data/x'")
    assert not machine_paths("url = 'https://example.org/data/x'; folder = 'coco/data/x'; label = 'images/work/b'")
    assert set(imported("import ray.data\nfrom sgpipe.cli.main import app")) == {"ray", "sgpipe"}
