"""`netweft version`."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys

from netweft_cli import options, output

PARTS = ("cli", "client", "protos", "controller", "ipam", "agent")


def version(form: options.Output = output.Format.TABLE) -> None:
    """Print the versions of what is installed here."""
    found = {}
    for part in PARTS:
        name = f"netweft-{part}"
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    found |= {"python": platform.python_version(), "kernel": platform.release()}
    if form is output.Format.JSON:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    elif form is output.Format.YAML:
        output.write_lines(f"{name}: '{one}'" for name, one in found.items())
    elif form is output.Format.NAME:
        output.write_lines([found["netweft-cli"]])
    else:
        output.write_table(["COMPONENT", "VERSION"], [[name, one] for name, one in found.items()])
