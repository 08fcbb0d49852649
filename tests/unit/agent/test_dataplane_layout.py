"""The page of the firewall's layout is what the drivers render."""

from __future__ import annotations

from pathlib import Path

from netweft_agent.domain import nft

from tests.support import dataplane, golden

PAGE = Path(__file__).parents[3] / "docs/dataplane/layout.md"
HEAD = """# Tables, chains, maps and sets of nftables

Made by `tests/unit/agent/test_dataplane_layout.py` of what drivers render; `GOLDEN_REWRITE=1` writes it anew.
What each is for and how packets go through: [README](README.md). One host's ruleset: [ruleset.nft](ruleset.nft).

"""


def test_the_page_shows_every_table_chain_map_and_set_with_who_fills_it():
    four = dataplane.rendered(dataplane.scenario())
    six = dataplane.rendered(dataplane.scenario("2001:db8::2"), "2001:db8::1")

    golden.check_file(PAGE, HEAD + dataplane.layout(four, six, dataplane.rendered(dataplane.crowded())))


def test_rules_do_not_depend_on_how_many_networks_and_endpoints_there_are():
    """What the page says once is true of every host: objects are elements, rules are constant."""

    def chains(items):
        return {
            one
            for parts in dataplane.rendered(items).values()
            for one in parts.values()
            if isinstance(one, nft.NftChain) and not one.ns
        }

    every = dataplane.scenario()
    fewer = [one for one in every if one.id not in {every[2].id, every[9].id}]

    assert chains(every) == chains(fewer)
