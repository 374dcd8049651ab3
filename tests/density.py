"""How dense the code of a package is: what a reader has to hold in mind from line to line."""

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LIMIT = 12
WIDTH = 100
# Names that say nothing about what they name.
VAGUE = frozenset(
    [
        "again",
        "each",
        "found",
        "given",
        "here",
        "how",
        "kept",
        "least",
        "made",
        "mine",
        "most",
        "of",
        "others",
        "own",
        "said",
        "same",
        "some",
        "there",
        "told",
        "what",
        "whole",
    ]
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
ASSIGNMENTS = (ast.Assign, ast.AnnAssign)
COUNTED = (
    *FUNCTIONS,
    ast.arg,
    ast.Assign,
    ast.comprehension,
    ast.Dict,
    ast.Name,
    ast.NamedExpr,
    ast.Starred,
)
BRANCHES = (
    ast.Assert,
    ast.AsyncFor,
    ast.ExceptHandler,
    ast.For,
    ast.If,
    ast.IfExp,
    ast.While,
    ast.match_case,
)


def density(package: Path) -> dict[str, float]:
    """Measure all files of a package.

    Returns: branches per line of functions; complex functions of 1,000 functions; long lines of
        100 lines; all else of 1,000 lines.
    """
    counts = Counter[str]()
    for path in package.rglob("*.py"):
        counts.update(count_file(*read_file(path)))
    rates = {name: 1000 * counts[name] / counts["lines"] for name in sorted(FEATURES)}
    return rates | {
        "branches": counts["branches"] / counts["lines of functions"],
        "complex functions": 1000 * counts["complex functions"] / counts["functions"],
        "constants after a definition": 1000 * counts["late constants"] / counts["lines"],
        "long lines": 100 * counts["long lines"] / counts["lines"],
    }


@cache
def read_file(path: Path) -> tuple[str, ast.Module]:
    source = path.read_text(encoding="utf-8")
    return source, ast.parse(source)


@cache
def nodes_of_module(module: ast.Module) -> list[ast.AST]:
    """All nodes, which several rules look through."""
    return list(ast.walk(module))


def count_file(source: str, tree: ast.Module) -> Counter[str]:
    lines = source.splitlines()
    counts = Counter({"lines": len(lines), "late constants": late_constants(tree)})
    counts["long lines"] = sum(len(line) > WIDTH for line in lines)
    for node in nodes_of_module(tree):
        if not isinstance(node, COUNTED):
            continue
        for name, has_feature in FEATURES.items():
            counts[name] += has_feature(node)
        if isinstance(node, FUNCTIONS):
            branches = complexity(node)
            counts["functions"] += 1
            counts["lines of functions"] += (node.end_lineno or node.lineno) - node.lineno + 1
            counts["branches"] += branches
            counts["complex functions"] += branches > LIMIT
    return counts


def late_constants(tree: ast.Module) -> int:
    """Count the assignments of a module that come after its first function or class."""
    kinds = [isinstance(statement, DEFINITIONS) for statement in tree.body]
    first = kinds.index(True) if True in kinds else len(kinds)
    return sum(isinstance(statement, ASSIGNMENTS) for statement in tree.body[first:])


def complexity(function: ast.AST) -> int:
    """One, and each branch of a function, without those of functions in it."""
    return 1 + sum(map(branches_of, nodes_of(function)))


def nodes_of(function: ast.AST) -> Iterator[ast.AST]:
    nodes = list(ast.iter_child_nodes(function))
    for node in nodes:  # which grows on the way
        yield node
        if not isinstance(node, FUNCTIONS):
            nodes.extend(ast.iter_child_nodes(node))


def branches_of(node: ast.AST) -> int:
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return int(isinstance(node, BRANCHES))


def is_packed(node: ast.AST) -> bool:
    """Tell `a, b = x, y`, and the same with a generator."""
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Tuple)
        and isinstance(node.value, ast.Tuple | ast.GeneratorExp)
    )


def is_splatted(node: ast.AST) -> bool:
    """Tell `{**{…}}` and `[*(…)]`: literals in literals."""
    if isinstance(node, ast.Starred):
        return isinstance(node.value, ast.Tuple | ast.List)
    if isinstance(node, ast.Dict):
        splatted = [value for key, value in zip(node.keys, node.values, strict=True) if key is None]
        return any(isinstance(value, ast.Dict) for value in splatted)
    return False


def is_vague(node: ast.AST) -> bool:
    """Tell a vague name where it gets its value."""
    if isinstance(node, ast.arg):
        return node.arg in VAGUE
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in VAGUE


FEATURES = {
    "Any": lambda node: isinstance(node, ast.Name) and node.id == "Any",
    "comprehensions": lambda node: isinstance(node, ast.comprehension),
    "packed assignments": is_packed,
    "splatted literals": is_splatted,
    "vague names": is_vague,
    "walrus": lambda node: isinstance(node, ast.NamedExpr),
}
