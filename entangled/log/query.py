"""SQL over a log, with DuckDB: the view `exchanges` has a row per prediction, with the log's columns and `epoch`."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pyarrow.parquet as pq

from entangled.errors import EntangledError
from entangled.exchange_log import DERIVED, SCHEMA, partitions, read_batches
from entangled.log.reader import Note, Run, completed

_COMPUTED = re.compile(rf"\b({'|'.join(DERIVED)})\b|(?<!count\()\*", re.IGNORECASE)
"""Where a question names columns that a log with every prediction does not store; `count(*)` names none."""


def query(run: Run, sql: str, note: Note) -> tuple[list[str], list[list[Any]]]:
    """Answer one `select` over the view `exchanges`.

    Parquet is read in place and only as far as the question needs it; an epoch that is still a stream is copied to a
    temporary Parquet file first, and so is everything if the question names columns that are computed.

    Args:
        run: as opened.
        sql: one `select`; anything else could write.
        note: as for every reading of a log.

    Returns:
        The column names, and the rows as plain values: bytes in hex, times in ISO format.

    Raises:
        EntangledError: DuckDB is missing, or cannot answer; its reason in one line.
    """
    try:
        import duckdb
    except ModuleNotFoundError:
        raise EntangledError("duckdb is missing: pip install 'entangled[log]'") from None
    with TemporaryDirectory(prefix="entangled-") as scratch, duckdb.connect() as connection:
        found = enumerate(partitions(run.folder))
        computed = run.experiment.exchange.log == "full" and _COMPUTED.search(sql) is not None
        files = [_provide(run, number, epoch, path, Path(scratch), note, computed) for number, (epoch, path) in found]
        if not files:
            raise EntangledError(f"{run.folder} has no exchanges yet")
        try:
            statements = connection.extract_statements(sql)
            if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
                raise EntangledError("a query must be one select", expected="select … from exchanges …", got=sql)
            connection.execute("set autoinstall_known_extensions = false; set python_enable_replacements = false")
            connection.execute("set TimeZone = 'UTC'")
            connection.execute(_view(files))
            answer = connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise EntangledError(_one_line(str(error))) from None
    return answer.column_names, [[_plain(value) for value in row.values()] for row in _rows(answer)]


def _rows(answer: Any) -> list[dict[int, Any]]:
    """By place: two columns may have one name."""
    return answer.rename_columns([str(i) for i in range(answer.num_columns)]).to_pylist()


def _provide(run: Run, number: int, epoch: int, path: Path, scratch: Path, note: Note, computed: bool) -> Path:
    """The partition as Parquet under `scratch`, where no folder's name can be taken for a column or a pattern."""
    target = scratch / f"epoch={epoch:04d}" / f"part-{number}.parquet"
    target.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet" and not computed:
        target.symlink_to(path.resolve())
        return target
    with pq.ParquetWriter(target, SCHEMA) as writer:
        for batch in completed(run, epoch, path, note) if computed else read_batches(path, note):
            writer.write_batch(batch)
    return target


def _view(files: list[Path]) -> str:
    names = ", ".join(f"'{path}'" for path in files)
    columns = ", ".join(f'"{name}"' for name in ["epoch", *SCHEMA.names])
    return (
        f"create view exchanges as select {columns} from "
        f"read_parquet([{names}], hive_partitioning = true, hive_types = {{'epoch': INTEGER}})"
    )


def _plain(value: Any) -> Any:
    match value:
        case bytes():
            return value.hex()
        case datetime():
            return value.isoformat()
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case list():
            return [_plain(item) for item in cast("list[Any]", value)]
        case dict():
            return {str(key): _plain(item) for key, item in cast("dict[Any, Any]", value).items()}
        case None | bool() | int() | float() | str():
            return value
        case _:
            return str(value)


def _one_line(message: str) -> str:
    return " ".join(message.partition("\n\n")[0].split())
