"""Logs on standard error: one line an event, as logfmt for people or as JSON for machines.

An event is a short constant phrase; what varies are its keys. Keys that name a secret are masked, and so is the user
part of a URL.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, Literal, TextIO

import structlog

Format = Literal["console", "json"]
Logger = structlog.typing.FilteringBoundLogger

_SECRET_KEY = re.compile(r"password|passwd|secret|token|credential|private_key", re.IGNORECASE)
_URL_USER = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^/@\s]*@", re.IGNORECASE)
_NEEDS_QUOTES = re.compile(r'[\s="\\]')
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def get(**bound: object) -> Logger:
    """Return a logger that adds these keys to each line; cheap to call, follows `configure` of any time."""
    logger: Logger = structlog.get_logger(**bound)
    return logger


def configure(*, level: str = "info", style: Format = "console", stream: TextIO | None = None) -> None:
    """Send the process's logs, the standard library's warnings included, to a stream.

    Args:
        level: debug, info, warning or error.
        style: console is `time level event key=value`, json is one object a line.
        stream: Standard error when None.
    """
    out = stream if stream is not None else sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        redact,
        structlog.processors.format_exc_info,
    ]
    render: structlog.typing.Processor = structlog.processors.JSONRenderer() if style == "json" else render_console
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(_LEVELS[level], logging.WARNING))


def redact(_logger: Any, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Mask secrets: values of keys that name one, and `user:password@` of URLs."""
    for key, value in event.items():
        if _SECRET_KEY.search(key):
            event[key] = "***"
        elif isinstance(value, str) and "@" in value:
            event[key] = mask_url(value)
    return event


def mask_url(text: str) -> str:
    """Return the text with `user:password@` of each URL masked."""
    return _URL_USER.sub(r"\g<scheme>***@", text)


def render_console(_logger: Any, _name: str, event: structlog.typing.EventDict) -> str:
    """Return `time level event key=value ...`, with a traceback on the lines below."""
    time = event.pop("time", "")
    level = event.pop("level", "info")
    phrase = event.pop("event", "")
    exception = event.pop("exception", None)
    pairs = " ".join(f"{key}={_quote(value)}" for key, value in event.items())
    line = f"{time} {level:7} {phrase}" + (f" {pairs}" if pairs else "")
    return f"{line}\n{exception}" if exception else line


def _quote(value: object) -> str:
    text = str(value)
    if text and not _NEEDS_QUOTES.search(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
