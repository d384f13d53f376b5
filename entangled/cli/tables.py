"""How the command line prints: aligned columns for people, JSON for programs, notes beside both."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import typer


def show(columns: Mapping[str, Sequence[object]]) -> None:
    """Print columns of equal length under their headings, numbers to the right.

    Nothing is wrapped or cut, so that other programs can read it.
    """
    show_rows(list(columns), list(zip(*columns.values(), strict=True)))


def show_rows(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """As `show`, given by rows; headings may be the same."""
    printed = [_column(heading, [row[i] for row in rows]) for i, heading in enumerate(headings)]
    for cells in zip(*printed, strict=True):
        typer.echo("  ".join(cells).rstrip())


def show_json(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def noter() -> Callable[[str], None]:
    """Something that prints each note once, on standard error."""
    seen: set[str] = set()

    def note(text: str) -> None:
        if text not in seen:
            seen.add(text)
            typer.echo(f"note: {text}", err=True)

    return note


UNKNOWN = "–"


def percent(share: float | None) -> str:
    """A share of 1 as a percentage."""
    return UNKNOWN if share is None else f"{share:.2%}"


def decimals(value: float | None, places: int = 4) -> str:
    """A number to so many decimals."""
    return UNKNOWN if value is None else f"{value:.{places}f}"


def span(first: float, last: float) -> str:
    """Two numbers as a range, or as one where they are the same."""
    return decimals(first) if first == last else f"{decimals(first)}…{decimals(last)}"


def short(value: object) -> object:
    """A cell's value; of a long list, its beginning and length.

    >>> short([1, 2, 3, 4, 5])
    '[1, 2, 3, … 5 values]'
    """
    if not isinstance(value, list):
        return value
    items = [str(item) for item in cast("list[object]", value)]
    return f"[{', '.join(items)}]" if len(items) < 5 else f"[{', '.join(items[:3])}, … {len(items)} values]"


def guessed(prediction: Sequence[float] | None, count: int) -> str:
    """A distribution's most probable classes.

    >>> guessed([0.0, 0.125, 0.875], 2)
    '2 87.5%, 1 12.5%'
    """
    if prediction is None:
        return UNKNOWN
    order = sorted(range(len(prediction)), key=lambda i: -prediction[i])[:count]
    return ", ".join(f"{i} {prediction[i]:.1%}" for i in order)


def _column(heading: str, values: Sequence[object]) -> list[str]:
    cells = [UNKNOWN if value is None else str(value) for value in values]
    width = max(map(len, [heading, *cells]))
    if all(re.fullmatch(r"–|-?[\d.…%]+", cell) for cell in cells):
        return [cell.rjust(width) for cell in [heading, *cells]]
    return [cell.ljust(width) for cell in [heading, *cells]]
