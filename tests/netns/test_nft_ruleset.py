"""Our rulesets in a real kernel, seen through the eyes of the real nft.

What nft prints is compared with what `domain/nft.py` prints, apart from: order of elements and of members of anonymous
sets (a hash's order), line breaks in long element lists, comments (our digests), and `burst 5 packets`, which old
versions of nft leave out.
"""

from __future__ import annotations

import re

import pytest
from netweft_agent.domain import nft
from netweft_agent.kernel import netlink
from netweft_agent.kernel import nft as kernel
from netweft_agent.kernel.nft import Change

from tests.support import nft_ruleset
from tests.support.netns import Netns, require_root, require_tool

pytestmark = pytest.mark.netns
TABLES = (nft_ruleset.INET, nft_ruleset.BRIDGE, nft_ruleset.NETDEV)


@pytest.fixture(autouse=True)
def _root():
    require_root()


@pytest.fixture
def ns():
    with Netns() as ns:
        yield ns


@pytest.fixture
def sock(ns):
    sock = ns.run(lambda: netlink.open_socket(netlink.NETLINK_NETFILTER))
    yield sock
    sock.close()


def normal(listing: str) -> list[str]:
    """Return a listing's lines without what is nobody's choice."""
    text = re.sub(r' comment "[0-9a-f]{16}"', "", listing).replace(" burst 5 packets", "")
    text = re.sub(r",\n\s+", ", ", text)
    return [" ".join(_sorted_elements(line).split()) for line in text.splitlines() if line.strip()]


def _sorted_elements(line: str) -> str:
    match = re.fullmatch(r"(.*(?:elements =|vmap|type|dport|l4proto) \{ )(.*?)( \}.*)", line)
    return match[1] + ", ".join(sorted(match[2].split(", "))) + match[3] if match else line


def bytecode(ns: Netns) -> list[str]:
    """Return the rules' expressions as the kernel has them, without handles and set elements."""
    text = ns.exec(["nft", "--debug=netlink", "list", "ruleset"]).stdout.split("\ntable ")[0]
    lines = (line for line in text.splitlines() if "element" not in line and "userdata" not in line)
    return [re.sub(r"^(\w+ \S+ \S+) .*", r"\1", line) for line in lines if line.strip()]


def test_what_is_observed_is_what_was_wanted(sock):
    wanted = {resource.key: resource for resource in nft_ruleset.full()}

    refused = kernel.apply(sock, [Change(None, resource) for resource in wanted.values()])
    observed = kernel.observe(sock, "", TABLES)

    assert {} == refused
    assert wanted == observed


def test_nft_lists_what_we_print(ns, sock):
    require_tool("nft")
    kernel.apply(sock, [Change(None, resource) for resource in nft_ruleset.full()])

    listed = ns.exec(["nft", "-s", "list", "ruleset"]).stdout

    assert normal(nft.listing(nft_ruleset.full())) == normal(listed)


def test_nft_makes_the_same_of_what_we_print(ns, sock):
    require_tool("nft")
    kernel.apply(sock, [Change(None, resource) for resource in nft_ruleset.full()])

    with Netns() as other:
        other.exec(["nft", "-f", "-"], stdin=nft.listing(nft_ruleset.full()))
        theirs, theirs_listed = bytecode(other), other.exec(["nft", "-s", "list", "ruleset"]).stdout
    ours, ours_listed = bytecode(ns), ns.exec(["nft", "-s", "list", "ruleset"]).stdout

    assert normal(theirs_listed) == normal(ours_listed)
    # For ARP and ICMP in a bridge nft looks at the Ethernet header's type and we at the packet's protocol, which is the
    # same without a VLAN tag and better with one.
    assert [line.replace("payload load 2b @ link header + 12", "meta load protocol") for line in theirs] == ours


def test_nft_takes_each_command_that_we_print(ns):
    require_tool("nft")
    resources = sorted(nft_ruleset.full(), key=lambda resource: resource.rank)
    # Chains jump to each other and elements to chains, so all chains come first, without their rules.
    lines = [
        re.sub(r"; add rule.*", "'", resource.add_command())
        if isinstance(resource, nft.NftChain)
        else resource.add_command()
        for resource in resources
    ]
    lines += [resource.change_command(resource) for resource in resources if isinstance(resource, nft.NftChain)]

    ns.exec(["nft", "-f", "-"], stdin="\n".join(line.removeprefix("nft ").strip("'") for line in lines))
    listed = ns.exec(["nft", "-s", "list", "ruleset"]).stdout

    assert sorted(normal(nft.listing(nft_ruleset.full()))) == sorted(normal(listed))


def test_nft_takes_each_removal_that_we_print(ns, sock):
    require_tool("nft")
    resources = nft_ruleset.full()
    kernel.apply(sock, [Change(None, resource) for resource in resources])
    order = sorted((resource for resource in resources if resource.rank != 20), key=lambda resource: -resource.rank)
    flush = [f"flush chain {one.table.text()} {one.name}" for one in order if isinstance(one, nft.NftChain)]
    lines = flush + [resource.delete_command().removeprefix("nft ").strip("'") for resource in order]

    ns.exec(["nft", "-f", "-"], stdin="\n".join(lines))

    assert [nft.NftTable(ns="", table=table) for table in TABLES] == list(kernel.observe(sock, "", TABLES).values())
