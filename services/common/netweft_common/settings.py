"""Settings as a frozen dataclass, filled from defaults < TOML file < environment < command line."""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import functools
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar

from netweft_common import errors, logs

T = TypeVar("T")

_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>ms|s|m|h|d)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

# Kubernetes and Docker links put such names of a service `netweft-ipam` into the environment of its neighbours.
_FOREIGN_ENV = re.compile(r"(SERVICE_HOST|SERVICE_PORT.*|PORT|PORT_\d+_.*)")


def about(text: str, *, secret: bool = False) -> dict[str, Any]:
    """Return the metadata of a setting's field: `field(default=..., metadata=about("..."))`.

    Args:
        text: One sentence for the user, with the unit.
        secret: Whether `describe` masks the value.
    """
    return {"help": text, "secret": secret}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What every service has; a service's own settings inherit it."""

    listen: tuple[str, ...] = field(
        default=(), metadata=about("Targets to serve at: unix:/path or host:port; several by comma.")
    )
    tls_ca: Path | None = field(
        default=None, metadata=about("PEM file of the authorities that callers' certificates come from.")
    )
    tls_cert: Path | None = field(
        default=None, metadata=about("PEM file of this service's certificate with its chain.")
    )
    tls_key: Path | None = field(default=None, metadata=about("PEM file of the certificate's private key."))
    grace: dt.timedelta = field(
        default=dt.timedelta(seconds=10),
        metadata=about("How long calls in flight may take after a stop, for example 10s."),
    )
    metrics_listen: str = field(
        default="", metadata=about("Where GET /metrics answers: 127.0.0.1:port or unix:/path; empty: nowhere.")
    )
    log_level: typing.Literal["debug", "info", "warning", "error"] = field(
        default="info", metadata=about("Lowest level that is logged.")
    )
    log_format: logs.Format = field(default="console", metadata=about("console for people, json for machines."))
    ready_fd: int | None = field(default=None, metadata=about("Descriptor that gets one JSON line when serving."))


def load(
    cls: type[T],
    *,
    service: str,
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    description: str = "",
) -> T:
    """Return settings of a service; `--help` and a wrong flag end the process as argparse does.

    Args:
        cls: Frozen dataclass whose fields have `about` as metadata.
        service: Short name: the environment's prefix is NETWEFT_<SERVICE>_.
        argv: Arguments without the program's name; the process's own when None.
        environ: Environment.
        description: Head of the help text.

    Raises:
        InvalidArgument: A value does not parse, a key is unknown, or a required one is missing; names where it stands.
    """
    fields = _fields(cls)
    prefix = f"NETWEFT_{service.upper().replace('-', '_')}_"
    parser = _parser(fields, service, prefix, description)
    flags = vars(parser.parse_args(argv))
    config = flags.pop("config", None) or environ.get(f"{prefix}CONFIG")
    values: dict[str, Any] = {}
    if config:
        values |= _from_toml(fields, Path(config))
    values |= _from_env(fields, environ, prefix)
    for name, text in flags.items():
        if text is not None:
            values[name] = fields[name].parse(text, f"--{name.replace('_', '-')}")
    missing = [name for name, known in fields.items() if known.required and name not in values]
    if missing:
        raise errors.InvalidArgument(
            "SETTING_MISSING",
            f"setting {missing[0]} has no default: give --{missing[0].replace('_', '-')}, "
            f"{prefix}{missing[0].upper()} or {missing[0]} in the configuration file",
            field=missing[0],
        )
    return cls(**values)


def describe(settings: Any) -> dict[str, str]:
    """Return settings as text for a log line, secrets masked."""
    result = {}
    for known in dataclasses.fields(settings):
        value = getattr(settings, known.name)
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        result[known.name] = "***" if known.metadata.get("secret") and text else logs.mask_url(text)
    return result


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """A setting and how text becomes its value."""

    name: str
    type: Any
    optional: bool
    required: bool
    help: str
    default: Any

    @property
    def is_tuple(self) -> bool:
        return typing.get_origin(self.type) is tuple

    def parse(self, value: Any, where: str) -> Any:
        """Return the typed value of a text, or of what TOML made of it.

        Raises:
            InvalidArgument: It is not of the type; `where` names the place.
        """
        try:
            return self._parse(value)
        except ValueError as error:
            raise errors.InvalidArgument(
                "SETTING_MALFORMED", f"{where}: {value!r} is not {self.kind}: {error}", field=self.name
            ) from error

    @property
    def kind(self) -> str:
        """What the user should write."""
        if typing.get_origin(self.type) is typing.Literal:
            return "one of " + ", ".join(typing.get_args(self.type))
        if self.is_tuple:
            return "a list"
        return {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            dt.timedelta: "a duration such as 250ms, 30s, 5m or 1h30m",
            Path: "a path",
        }.get(self.type, "a text")

    def _parse(self, value: Any) -> Any:
        if self.is_tuple:
            return _parse_tuple(value)
        if typing.get_origin(self.type) is typing.Literal:
            if value not in typing.get_args(self.type):
                raise ValueError("unknown word")
            return value
        if self.optional and value == "":
            return None
        return _PARSERS[self.type](value)


def parse_duration(value: Any) -> dt.timedelta:
    """Return the duration of `250ms`, `30s`, `5m`, `1h30m`, `7d`, or of a bare number of seconds.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(value, str) and not re.fullmatch(r"\d+(\.\d+)?", value):
        if not re.fullmatch(rf"(?:{_DURATION.pattern.replace('?P<number>', '').replace('?P<unit>', '')})+", value):
            raise ValueError("not a number with ms, s, m, h or d")
        seconds = sum(float(part["number"]) * _UNIT_S[part["unit"]] for part in _DURATION.finditer(value))
    else:
        seconds = _parse_number(float, value)
    if seconds < 0:
        raise ValueError("it is negative")
    return dt.timedelta(seconds=seconds)


def _parse_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = _WORDS.get(_text(value).lower())
    if word is None:
        raise ValueError("unknown word")
    return word


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("it is no text")  # noqa: TRY004  # a user's value, not a caller's type
    return value


def _parse_tuple(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(part.strip() for item in items for part in _text(item).split(",") if part.strip())


def _parse_number(kind: type[int | float], value: Any) -> float:
    if isinstance(value, bool) or (kind is int and isinstance(value, float)):
        raise ValueError("another type")
    return kind(value)


# TOML hands over typed values, the environment and flags hand over text; each parser takes both.
_PARSERS: dict[Any, Callable[[Any], Any]] = {
    bool: _parse_bool,
    int: functools.partial(_parse_number, int),
    float: functools.partial(_parse_number, float),
    dt.timedelta: parse_duration,
    str: _text,
    Path: lambda value: Path(_text(value)),
}


def _fields(cls: type[Any]) -> dict[str, _Field]:
    hints = typing.get_type_hints(cls)
    result = {}
    for known in dataclasses.fields(cls):
        hint = hints[known.name]
        parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        inner = [part for part in parts if part is not type(None)]
        required = known.default is dataclasses.MISSING and known.default_factory is dataclasses.MISSING
        result[known.name] = _Field(
            name=known.name,
            type=inner[0],
            optional=len(inner) < len(parts),
            required=required,
            help=known.metadata.get("help", ""),
            default=None if required else known.default,
        )
    return result


def _parser(fields: Mapping[str, _Field], service: str, prefix: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"netweft-{service}",
        description=description,
        epilog=f"Each setting may also stand in the file of --config (TOML) or in the environment as {prefix}<NAME>.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings; a flag wins over it")
    for known in fields.values():
        flag = f"--{known.name.replace('_', '-')}"
        text = f"{known.help} Default: {_show(known.default)}." if not known.required else f"{known.help} Required."
        options: dict[str, Any] = {"dest": known.name, "default": None, "help": text.replace("%", "%%")}
        if known.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        elif known.is_tuple:
            parser.add_argument(flag, action="append", metavar="TEXT", **options)
        else:
            parser.add_argument(flag, metavar=getattr(known.type, "__name__", "value").upper(), **options)
    return parser


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    if isinstance(value, dt.timedelta):
        return f"{value.total_seconds():g}s"
    return "none" if value in (None, "") else str(value)


def _from_toml(fields: Mapping[str, _Field], path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise errors.InvalidArgument(
            "CONFIG_UNREADABLE", f"cannot read the configuration file {path}: {error.strerror}", field="config"
        ) from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are its children
        raise errors.InvalidArgument(
            "CONFIG_MALFORMED", f"the configuration file {path} is not TOML: {error}", field="config"
        ) from error
    values = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise _unknown(f"{path}: key {key!r}", fields)
        values[name] = fields[name].parse(value, f"{path}: {key}")
    return values


def _from_env(fields: Mapping[str, _Field], environ: Mapping[str, str], prefix: str) -> dict[str, Any]:
    values = {}
    for key, text in environ.items():
        rest = key.removeprefix(prefix)
        name = rest.lower()
        if rest == key or name == "config":
            continue
        if name in fields:
            values[name] = fields[name].parse(text, key)
        elif not _FOREIGN_ENV.fullmatch(rest):
            raise _unknown(f"environment variable {key}", fields)
    return values


def _unknown(what: str, fields: Mapping[str, _Field]) -> errors.InvalidArgument:
    return errors.InvalidArgument("SETTING_UNKNOWN", f"{what} is no setting; known are {', '.join(sorted(fields))}")
