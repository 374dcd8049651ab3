"""Inventories: files that list the images of a folder or a prefix, instead of a listing.

S3 Inventory's Parquet or CSV, a Parquet file of paths, or a text file with one path a line. DuckDB
reads them in streams, and objects are sorted on disk as those of a listing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from sgpipe.errors import UserError, first_line
from sgpipe.files.index import IndexFolder, IndexReference, place_index, write_parts
from sgpipe.files.listing import differences, sorted_parts
from sgpipe.files.locations import Location, content_id
from sgpipe.files.stores import StorePath
from sgpipe.utils.atomic import temporary_folder
from sgpipe.utils.console import count, single_line
from sgpipe.utils.database import configure, interruptible

_LAYOUT = "inventory 1"  # changes with what the index of an inventory has
_MEMORY = "256MB"
_PARQUET = ".parquet"
_TABLES = (".csv", ".csv.gz")
_TEXT = "path"  # the column of a text file
_KEY = "key"  # S3 Inventory's, which begins at the bucket
_PATHS = (_KEY, "path", "file_name", "name")
_VERSIONS = ("e_tag", "etag")
_TIMES = ("last_modified_date", "lastmodifieddate", "last_modified")
# S3 Inventory's CSV has no header: what follows depends on its configuration.
_FIRST_COLUMNS = ("bucket", _KEY)
_CSV = "all_varchar = true, delim = ',', quote = '\"', escape = '\"'"
# no name of a file has the delimiter
_LINES = (
    f"columns = {{'{_TEXT}': 'VARCHAR'}}, header = false, delim = '\x1f', quote = '', escape = '',"
    " auto_detect = false"
)
_ENTRIES = """
    CREATE VIEW entries AS
    SELECT
        CASE
            WHEN starts_with(path, $root) THEN substr(path, length($root) + 1)
            WHEN NOT $is_key THEN regexp_replace(path, '^(\\./+)+', '')
            WHEN starts_with(path, $prefix) THEN substr(path, length($prefix) + 1)
        END AS name,
        path, size, version, modified
    FROM ({rows})
"""
_LEAVING = r"""
    SELECT path FROM entries
    WHERE regexp_matches(name, '(^|/)\.\.(/|$)|^/|^[A-Za-z][A-Za-z0-9+.-]*://') LIMIT 1
"""
_WRITTEN = """
    COPY (
        SELECT name, size, version, modified FROM entries
        WHERE name <> '' AND NOT ends_with(name, '/')
    ) TO '{path}' (FORMAT parquet)
"""


def inventory_index(text: str, place: Location, indexes: IndexFolder) -> IndexReference:
    """Return the index of the files that an inventory lists; it is read unless that has been done.
    Says what has changed since the run began.

    Args:
        text: the location of the images.
        place: the same; names are relative to it.

    Raises:
        UserError: the inventory cannot be read, lists nothing below the location, or leaves it.
    """
    inventory = indexes.inventory
    assert inventory is not None
    files = inventory_files(inventory)
    reference = indexes.reference([_LAYOUT, text, *map(content_id, files)])
    if not reference.exists:
        indexes.progress.say(f"reading {inventory}")
        _write_index(reference, inventory, files, place)
    before = indexes.kept_reference(text)
    if before is not None and before.name != reference.name:
        changes = differences(before.opened, reference.opened)
        if changes:
            when = indexes.kept[text].listed
            indexes.progress.say(
                f"NOTE: {inventory} differs from what was listed {when}: {changes}"
            )
    return reference


def inventory_files(inventory: Location) -> list[Location]:
    """Return the files of an inventory, which may be a folder of Parquet files.

    Raises:
        UserError: there are none.
    """
    if not isinstance(inventory, Path) or not inventory.is_dir():
        content_id(inventory)
        return [inventory]
    files: list[Location] = [*sorted(inventory.rglob(f"*{_PARQUET}"))]
    if not files:
        raise UserError(f"{inventory} contains no {_PARQUET} files: name a file of paths")
    return files


def _write_index(
    reference: IndexReference, inventory: Location, files: Sequence[Location], place: Location
) -> None:
    """Write the index of the files that an inventory lists into this machine's cache."""
    cache = reference.path.parent
    cache.mkdir(parents=True, exist_ok=True)
    with temporary_folder(cache) as folder:
        paths = [_downloaded(file, folder) for file in files]
        listed = folder / "listed.parquet"
        try:
            _write_entries(listed, paths, inventory, place, folder)
        except duckdb.Error as error:
            raise UserError(
                f"{inventory} cannot be read ({first_line(error)}): expected Parquet, CSV, or text"
                " with one path a line"
            ) from None
        write_parts(folder / "index", sorted_parts(listed, folder), {})
        place_index(folder / "index", reference.path)


def _downloaded(file: Location, folder: Path) -> Path:
    """Return a file on this machine: of one in a store a copy in a folder."""
    if isinstance(file, Path):
        return file
    path = folder / file.name
    file.get_file(path)
    return path


def _write_entries(
    listed: Path, paths: Sequence[Path], inventory: Location, place: Location, folder: Path
) -> None:
    """Write names below a place, sizes and versions into a Parquet file.

    Args:
        folder: for what does not fit into memory.

    Raises:
        UserError: no column has paths, one leaves the place, or none is below it.
    """
    with interruptible(), duckdb.connect() as database:
        configure(database, folder / "reading", _MEMORY)
        _open_table(database, paths)
        described = database.execute("DESCRIBE inventory").fetchall()
        columns = {str(name).lower(): str(name) for name, *_ in described}
        path_column = _first_of(_PATHS, columns)
        if path_column is None:
            raise UserError(
                f"{inventory} has no column {', '.join(_PATHS[:-1])} or {_PATHS[-1]}; it has"
                f" {', '.join(map(single_line, columns.values()))}"
            )
        is_encoded = not paths[0].name.endswith(_PARQUET) and path_column == _KEY
        rows = _rows(columns, path_column, is_encoded=is_encoded)
        places = _prefixes(place, is_key=path_column == _KEY)
        _create_entries(database, rows, places)
        leaving = database.execute(_LEAVING).fetchone()
        if leaving is not None:
            raise UserError(
                f"{inventory} lists {single_line(leaving[0])}, which is not below {place}: correct"
                " the list, or pass other --images"
            )
        database.execute(_WRITTEN.format(path=_escaped(str(listed))))
        counts = database.execute("SELECT count(*), count(name) FROM entries").fetchone()
    assert counts is not None
    entries, below = counts
    if not below:
        raise UserError(
            f"{inventory} lists nothing below {place}: it has {count(entries, 'path')} of others"
        )


def _open_table(database: duckdb.DuckDBPyConnection, paths: Sequence[Path]) -> None:
    """Make the rows of files a view `inventory`, whose cells are text unless it is Parquet."""
    names = ", ".join(f"'{_escaped(str(path))}'" for path in paths)
    name = paths[0].name
    if name.endswith(_PARQUET):
        rows = f"SELECT * FROM read_parquet([{names}], union_by_name = true)"
    elif name.endswith(_TABLES):
        rows = _csv_rows(database, names)
    else:
        rows = f"SELECT * FROM read_csv([{names}], {_LINES})"
    database.execute(f"CREATE VIEW inventory AS {rows}")


def _csv_rows(database: duckdb.DuckDBPyConnection, names: str) -> str:
    """Return the query of a CSV file, whose first line may name its columns."""
    unnamed = f"read_csv([{names}], header = false, {_CSV})"
    cursor = database.execute(f"SELECT * FROM {unnamed} LIMIT 1")
    columns = [column for column, *_ in cursor.description or ()]
    first = cursor.fetchone() or ()
    if _first_of(_PATHS, {str(value).lower(): "" for value in first}):
        return f"SELECT * FROM read_csv([{names}], header = true, {_CSV})"
    named = zip(columns, _FIRST_COLUMNS, strict=False)
    return f"SELECT {', '.join(f'{column} AS {title}' for column, title in named)} FROM {unnamed}"


def _first_of(names: Sequence[str], columns: Mapping[str, str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _rows(columns: Mapping[str, str], path_column: str, *, is_encoded: bool) -> str:
    """Return the query of the paths, sizes, versions and times of an inventory.

    Args:
        is_encoded: paths are as in a URL, those of S3 Inventory's CSV.
    """
    path = f'"{columns[path_column]}"'
    decoded = f"url_decode({path})" if is_encoded else path
    size = f'TRY_CAST("{columns["size"]}" AS BIGINT)' if "size" in columns else "NULL::BIGINT"
    version_column = _first_of(_VERSIONS, columns)
    # a listing has ETags in quotes, S3 Inventory has them without
    version = (
        f"""'"' || nullif(trim("{columns[version_column]}", '"'), '') || '"'"""
        if version_column
        else "NULL::VARCHAR"
    )
    time_column = _first_of(_TIMES, columns)
    modified = (
        f'epoch(TRY_CAST("{columns[time_column]}" AS TIMESTAMPTZ))'
        if time_column
        else "NULL::DOUBLE"
    )
    conditions = [f"{path} IS NOT NULL"]
    if "is_latest" in columns:
        conditions.append(f'TRY_CAST("{columns["is_latest"]}" AS BOOLEAN) IS NOT FALSE')
    if "is_delete_marker" in columns:
        conditions.append(f'TRY_CAST("{columns["is_delete_marker"]}" AS BOOLEAN) IS NOT TRUE')
    return (
        f"SELECT {decoded} AS path, {size} AS size, {version} AS version, {modified} AS modified"
        f" FROM inventory WHERE {' AND '.join(conditions)}"
    )


def _prefixes(place: Location, *, is_key: bool) -> dict[str, str]:
    """Return what paths below a place may begin with: in `root` the place itself, in `prefix` its
    part behind the bucket, which keys have.
    """
    root = f"{str(place).rstrip('/')}/"
    if not isinstance(place, StorePath) or not is_key:
        return {"root": root, "prefix": "", "is_key": "false"}
    key = root.partition("://")[2].partition("/")[2]
    return {"root": root, "prefix": key, "is_key": "true"}


def _create_entries(
    database: duckdb.DuckDBPyConnection, rows: str, places: Mapping[str, str]
) -> None:
    """Make a view of the names of an inventory's files, NULL of those in other prefixes."""
    query = _ENTRIES.format(rows=rows)
    for name, value in places.items():  # a view has no parameters
        literal = value if name == "is_key" else f"'{_escaped(value)}'"
        query = query.replace(f"${name}", literal)
    database.execute(query)


def _escaped(text: str) -> str:
    """Return a text as SQL writes it between single quotes."""
    return text.replace("'", "''")
