"""DuckDB within bounds: memory, threads, what it prints, and Ctrl-C."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

_THREADS = 8  # more do not fit into the memory


def configure(
    connection: duckdb.DuckDBPyConnection,
    spill: Path,
    memory: str = "600MB",
    *,
    ordered: bool = False,
) -> None:
    """Bound the memory and threads of a connection; what does not fit spills to a folder.

    `fetchall` keeps an ORDER BY in any case, Arrow's tables only if the connection is `ordered`.
    """
    [(cores,)] = connection.execute("select current_setting('threads')").fetchall()
    for setting in (
        f"memory_limit = '{memory}'",
        f"threads = {1 if ordered else min(cores, _THREADS)}",
        f"preserve_insertion_order = {ordered}",
        "autoinstall_known_extensions = false",
        "enable_progress_bar = false",
    ):
        connection.execute(f"set {setting}")
    connection.execute("set temp_directory = ?", [str(spill)])


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C during a query interrupt the program: DuckDB makes a RuntimeError of it."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != "Query interrupted":
            raise
        raise KeyboardInterrupt from None
