"""Third-party code that a user names: a source, a captioner, a tagger, a stage, a format or an
evaluator.

A name is `package.module:attribute`, or that of an entry point which an installed package states
(`[project.entry-points."sgpipe.captioners"]`). Only importable modules count, never a path.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from sgpipe.errors import CodeError, EngineError, StoreError, UserError
from sgpipe.registry import BUILT_IN, Kind

Plugin = TypeVar("Plugin")

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

_IDENTITY = re.compile(rf"{_REFERENCE.pattern} .* sha256:[0-9a-f]{{64}}( {{.*}})?")


def is_reference(name: str) -> bool:
    """Return whether a name has the form `package.module:attribute`."""
    return _REFERENCE.fullmatch(name) is not None


@cache
def installed(kind: Kind) -> Mapping[str, str]:
    """Return the references that installed packages state for a kind, by name."""
    from importlib.metadata import entry_points  # `--help` must not wait for it

    stated = entry_points(group=f"sgpipe.{kind}s")
    return {entry.name: entry.value for entry in stated if is_reference(entry.value)}


def own_reference(kind: Kind, name: str) -> str | None:
    """Return the reference that a name is or that an installed package states; None: neither."""
    return name if is_reference(name) else installed(kind).get(name)


def reference_of(kind: Kind, name: str) -> str | None:
    """Return the reference of a name, also of one of sgpipe's; None: the name is not known."""
    return BUILT_IN[kind].get(name) or own_reference(kind, name)


def names_of(kind: Kind) -> list[str]:
    """Return the names of a kind, those of installed packages last."""
    return list(dict.fromkeys([*BUILT_IN[kind], *installed(kind)]))


def load(kind: Kind, reference: str) -> Any:
    """Import what a reference names.

    Raises:
        UserError: there is no such module or attribute.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        module = import_module(module_name)
    except Exception as error:
        advice = ""
        if isinstance(error, ModuleNotFoundError):
            advice = "; install its package, or name its folder in PYTHONPATH"
        if module_name.endswith(".py"):
            advice = "; the name of a module has no .py"
        raise CodeError(
            f"{kind} {reference}: {module_name} cannot be imported"
            f" ({_described(error)}){_own_line(error, module_name)}{advice}",
            _trace(error),
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise UserError(
            f"{kind} {reference}: {module.__file__ or module_name} has no {attribute}"
        ) from None


def load_class(kind: Kind, reference: str, base: type[Plugin]) -> type[Plugin]:
    """Import a class.

    Raises:
        UserError: as `load`, or it is not a subclass of `base`.
    """
    loaded = load(kind, reference)
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise UserError(f"{kind} {reference} is not a subclass of sgpipe.{base.__name__}")
    return loaded


def load_instance(kind: Kind, reference: str, expected: type[Plugin]) -> Plugin:
    """Import a value.

    Raises:
        UserError: as `load`, or it is not of this class.
    """
    loaded = load(kind, reference)
    if not isinstance(loaded, expected):
        raise UserError(f"{kind} {reference} is not a sgpipe.{expected.__name__}")
    return loaded


def built_in_class(kind: Kind, name: str, base: type[Plugin]) -> type[Plugin]:
    """Import a class of sgpipe by its name."""
    return load_class(kind, BUILT_IN[kind][name], base)


@contextmanager
def failures_told(kind: Kind, reference: str) -> Iterator[None]:
    """Run code of the user's own in the body of a `with` statement.

    Raises:
        CodeError: it failed; the message has the error, and the line of that code.
    """
    try:
        yield
    except (UserError, EngineError, StoreError):
        raise
    except Exception as error:
        module_name = reference.partition(":")[0]
        raise CodeError(
            f"{kind} {reference} failed: {_described(error)}{_own_line(error, module_name)}",
            _trace(error),
        ) from error


def code_identity(kind: Kind, reference: str) -> str:
    """Return what identifies the code behind a reference: its name, the version of its package and
    the hash of its module.

    Raises:
        UserError: as `load`.
    """
    loaded = load(kind, reference)
    module_name, _, attribute = reference.partition(":")
    module = import_module(module_name)
    if inspect.isclass(loaded):  # it may be written in another module than names it
        module = inspect.getmodule(loaded) or module
        attribute = loaded.__qualname__
    name = f"{module.__name__}:{attribute}"
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):
        raise UserError(
            f"{kind} {reference}: {module.__name__} has no source file, which identifies what it"
            " does; put it into a .py file"
        ) from None
    digest = hashlib.sha256(source.encode()).hexdigest()
    return f"{name} {_version_of(module.__name__)} sha256:{digest}"


def is_code_identity(text: object) -> bool:
    """Return whether a text is what `code_identity` returns of some code."""
    return isinstance(text, str) and _IDENTITY.fullmatch(text) is not None


def _version_of(module: str) -> str:
    """Return the version of the package that a module is installed from, or else that it states."""
    from importlib.metadata import PackageNotFoundError, version

    package = module.partition(".")[0]
    for distribution in packages_by_module().get(package, ()):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return str(getattr(import_module(package), "__version__", "no version"))


@cache
def packages_by_module() -> Mapping[str, list[str]]:
    """Return the installed packages that have a top-level module, by its name: a second's work."""
    from importlib.metadata import packages_distributions

    return packages_distributions()


def _described(error: Exception) -> str:
    """Return an error in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _own_line(error: Exception, module_name: str) -> str:
    """Return the innermost line of the user's package that an error passed, in brackets; ""
    without one.
    """
    package = module_name.partition(".")[0]
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] == package:
            file = Path(frame.f_code.co_filename)
            depth = module.count(".") + (file.name == "__init__.py")
            place = f" ({'/'.join(file.parts[-1 - depth :])}:{line})"
    return place


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error))
