"""How values leave the command line: tables for people, JSON and YAML for programs, names for pipes."""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


class Format(enum.StrEnum):
    """Value of --output."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"

    @property
    def is_table(self) -> bool:
        """Whether people read it."""
        return self in (Format.TABLE, Format.WIDE)

    @property
    def is_data(self) -> bool:
        """Whether programs read it."""
        return self in (Format.JSON, Format.YAML)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table; a wide one is shown with `-o wide` only."""

    title: str
    value: Callable[[Any], str]
    wide: bool = False


def show(
    items: Iterable[Any],
    columns: Sequence[Column],
    *,
    form: Format,
    name: Callable[[Any], str],
    quiet: bool = False,
) -> None:
    """Write objects to stdout.

    Args:
        items: Values of the client.
        columns: What a table has.
        form: Which way.
        name: What `-o name` prints of each.
        quiet: Ids only, whatever the format (Docker's --quiet).
    """
    if quiet:
        write_lines(item.id for item in items)
    elif form is Format.NAME:
        write_lines(name(item) for item in items)
    elif form.is_data:
        write_data(list(items), form)
    else:
        shown = [column for column in columns if form is Format.WIDE or not column.wide]
        write_table([column.title for column in shown], [[column.value(item) for column in shown] for item in items])


def write_data(value: Any, form: Format) -> None:
    """Write one document; anything but YAML is JSON."""
    from netweft_client import model  # noqa: PLC0415  # loads grpc

    document = model.plain(value)
    if form is Format.YAML:
        import yaml  # noqa: PLC0415  # 50 ms that only YAML should cost

        sys.stdout.write(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    else:
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write_line(value: Any) -> None:
    """Write one compact JSON line, for streams; flushed, for whoever reads along."""
    from netweft_client import model  # noqa: PLC0415  # loads grpc

    sys.stdout.write(json.dumps(model.plain(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def write_stream(values: Iterable[Any], form: Format, *, line: Callable[[Any], str]) -> None:
    """Write values as they come, each flushed for whoever reads along.

    Args:
        values: Values of the client.
        form: JSON is one compact line a value, YAML a document.
        line: Text of a value for people.
    """
    for value in values:
        if form is Format.JSON:
            write_line(value)
        elif form is Format.YAML:
            sys.stdout.write("---\n")
            write_data(value, form)
        else:
            write_lines([line(value)])
        sys.stdout.flush()


def write_lines(lines: Iterable[str]) -> None:
    """Write lines."""
    sys.stdout.writelines(f"{line}\n" for line in lines)


def write_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write aligned columns, never cut: what a pipe gets is what a terminal shows."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for number, row in enumerate([titles, *rows]):
        line = "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        bold = number == 0 and sys.stdout.isatty()
        sys.stdout.write(f"\x1b[1m{line}\x1b[0m\n" if bold else f"{line}\n")


def pairs(values: Mapping[str, Any]) -> str:
    """Return a mapping as k=v, comma-separated."""
    return ",".join(f"{key}={value}" for key, value in sorted(values.items()))


def short(identifier: str) -> str:
    """Return an id as tables show it; the prefix is accepted wherever the id is."""
    return identifier[:12]


def joined(values: Iterable[Any]) -> str:
    """Return values comma-separated, or a dash for none."""
    return ",".join(str(value) for value in values if value) or "-"
