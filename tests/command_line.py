"""The command line, in this process."""

from __future__ import annotations

import json

from typer.testing import CliRunner, Result

from entangled.cli.main import app
from entangled.errors import EntangledError

RUNNER = CliRunner()


def log(*arguments: object) -> Result:
    result = RUNNER.invoke(app, ["log", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit | EntangledError):
        raise result.exception
    return result


def table(*arguments: object) -> list[dict[str, str]]:
    """A table's rows by heading; no cell of the tables in these tests has two spaces in it."""
    result = log(*arguments)
    assert result.exit_code == 0, result.output
    headings, *rows = [[c for c in line.split("  ") if c] for line in result.stdout.splitlines()]
    return [dict(zip((h.strip() for h in headings), (c.strip() for c in row), strict=True)) for row in rows]


def from_json(*arguments: object):
    result = log(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
