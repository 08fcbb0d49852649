"""The ruleset in the documentation is a real kernel's, as the real nft prints it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import dataplane, golden
from tests.support.agent import network
from tests.support.lab import new_lab
from tests.support.netns import Netns, require_root, require_tool

pytestmark = [pytest.mark.netns, pytest.mark.anyio]

PAGE = Path(__file__).parents[2] / "docs/dataplane/ruleset.nft"
HEAD = """\
# nft -s list ruleset, on a host with the networks of tests/support/dataplane.py: 10.1 is a bridge network with
# published ports, 10.2 one with icc off and SNAT, 10.3 routed, 10.4 unprotected, 10.5 internal; 10.6 is an overlay.
# Made by tests/netns/test_dataplane_ruleset.py; GOLDEN_REWRITE=1 writes it anew. Comments (our digests) are left out.

"""
BETWEEN = "\n# The same in the namespace of the overlay network.\n\n"


async def test_the_documented_ruleset_is_what_a_host_has():
    require_root()
    require_tool("nft")
    async with new_lab() as lab:
        await lab.put(*dataplane.scenario())
        inside = Netns.at(lab.kernel.netns_path(f"network/{network(6).id}"))

        texts = [ns.exec(["nft", "-s", "list", "ruleset"]).stdout for ns in (lab.host, inside)]
        inside.close()

    golden.check_file(PAGE, HEAD + BETWEEN.join(dataplane.tidy(text) for text in texts))
