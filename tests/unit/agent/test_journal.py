"""The journal: what comes back after a restart, a torn line, a broken line, a full disk."""

from __future__ import annotations

import os
import resource
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import fields, replace
from netweft_agent.domain.objects import (
    Bandwidth,
    Endpoint,
    Kind,
    Network,
    Peer,
    PublishedPort,
    Ref,
    Sandbox,
    StaticRoute,
    Subnet,
)
from netweft_agent.engine import journal as module
from netweft_agent.engine.journal import Journal, Position
from netweft_agent.engine.store import Change
from netweft_common.errors import Exhausted, FailedPrecondition

from tests.support.agent import endpoint, gone, network, oid, peer, put, sandbox

FULL = [
    Network(
        id=oid(1),
        name='wéb "net"\n',
        driver="overlay",
        subnets=(
            Subnet(subnet=ip_network("10.1.0.0/24"), gateway=ip_interface("10.1.0.1/24"), pool_id="a/10.1.0.0/24"),
            Subnet(subnet=ip_network("fd00::/64"), gateway=None, default_gateway=ip_interface("fd00::9/64")),
        ),
        options={"mtu": "1400", "com.docker.network.driver.mtu": "1"},
        claims={"vni": 16777215, "transit": 1},
        internal=True,
        enable_ipv4=False,
        enable_ipv6=True,
        revision=2**63,
    ),
    Sandbox(
        id=oid(101),
        container_id="c1",
        source="/run/netns/c1",
        hostname="web",
        domainname="example.net",
        dns_servers=("192.0.2.1", "2001:db8::1"),
        dns_search=("a", "b"),
        dns_options=("ndots:0",),
        extra_hosts=(("db", "10.0.0.9"), ("db6", "fd00::9")),
        hosts_path="/c/hosts",
        resolv_conf_path="/c/resolv.conf",
        revision=5,
        place="/run/netns/c2",
    ),
    Endpoint(
        id=oid(1001),
        name="ep",
        network_id=oid(1),
        sandbox_id=oid(101),
        mac="02:00:00:00:00:01",
        addresses=(ip_interface("10.1.0.5/24"), ip_interface("fd00::5/64")),
        dns_names=("web", "www"),
        interface_name="eth0",
        gateway_priority=-7,
        options={"a": "b"},
        ports=(
            PublishedPort(container_port=80),
            PublishedPort(
                protocol="udp",
                container_port=53,
                host_address="192.0.2.1",
                host_port=5000,
                host_port_end=5010,
                assigned_port=5003,
            ),
        ),
        link_local=(ip_interface("169.254.1.1/16"), ip_interface("fe80::1/64")),
        routes=(
            StaticRoute(destination=ip_network("192.0.2.0/24"), next_hop=ip_address("10.1.0.9")),
            StaticRoute(destination=ip_network("2001:db8::/32")),
        ),
        sysctls={"net.ipv4.conf.IFNAME.log_martians": "1"},
        bandwidth=Bandwidth(ingress_rate=8000, ingress_burst=1, egress_rate=9000, egress_burst=2),
        confirmed=True,
        lease_epochs=(2**48 - 1, 7),
        shard=3,
        revision=6,
    ),
    Peer(
        endpoint_id=oid(5001),
        network_id=oid(1),
        host_id="h",
        vtep="2001:db8::2",
        mac="02:00:00:00:00:02",
        addresses=("10.1.0.9", "fd00::9"),
        revision=7,
    ),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "journal"


def keep(path, *items, position=None):
    journal = Journal(path)
    journal.load()
    journal.append([change for item in items for change in put(item.revision, item)], position)
    journal.close()


def load(path):
    journal = Journal(path)
    try:
        return journal.load()
    finally:
        journal.close()


@pytest.mark.parametrize("item", FULL, ids=[str(one.ref.kind) for one in FULL])
def test_every_field_of_every_kind_comes_back(path, item):
    plain = type(item)(**{one.name: getattr(item, one.name) for one in fields(item) if one.required})
    same = [
        one.name for one in fields(item) if not one.required and getattr(plain, one.name) == getattr(item, one.name)
    ]

    keep(path, item)

    assert [] == same, "the example must fill every field"
    assert {item.ref: item} == load(path)[0]


def test_an_endpoint_of_an_agent_that_knew_no_shards_is_on_the_first_bridge(path):
    item = endpoint(shard=2)
    keep(path, item)
    path.write_bytes(path.read_bytes().replace(b'"shard":2,', b""))

    assert replace(item, shard=0) == load(path)[0][item.ref]


def test_peers_of_an_agent_that_kept_their_prefix_lengths_are_read_without(path):
    item = peer()
    keep(path, item)
    path.write_bytes(path.read_bytes().replace(b'"10.1.0.101"', b'"10.1.0.101/24"'))

    assert {item.ref: item} == load(path)[0]


def test_types_come_back_as_they_were(path):
    keep(path, *FULL)

    found, _ = load(path)

    back = found[Ref(kind=Kind.NETWORK, id=oid(1))]
    assert isinstance(back.subnets, tuple)
    assert isinstance(found[FULL[1].ref].extra_hosts[0], tuple)
    assert [type(one) for one in FULL[2].addresses] == [type(one) for one in found[FULL[2].ref].addresses]


def test_a_new_host_has_nothing(path):
    assert load(path) == ({}, Position())
    assert 0o700 == path.parent.stat().st_mode & 0o777
    assert 0o600 == path.stat().st_mode & 0o777


def test_the_last_word_on_an_object_counts(path):
    keep(path, network(), sandbox())
    journal = Journal(path)
    journal.load()
    journal.append([*put(2, network(internal=True)), *gone(3, sandbox())], Position(store_id="s", revision=3))
    journal.append(put(4, sandbox(hostname="again")))
    journal.append((), Position(store_id="s", revision=9))
    journal.close()

    objects, position = load(path)

    assert {
        network().ref: replace(network(internal=True), revision=2),
        sandbox().ref: replace(sandbox(hostname="again"), revision=4),
    } == objects
    assert Position(store_id="s", revision=9) == position


def test_a_journal_of_an_agent_that_kept_no_leases_loads_and_has_all_sent_again(path):
    old = [
        b'{"journal":1}',
        b'{"position":{"store_id":"s","revision":9}}',
        b'{"kind":"network","put":{"id":"%s","name":"net","driver":"bridge","subnets":[{"subnet":"10.1.0.0/24",'
        b'"gateway":"10.1.0.1/24"}],"revision":3}}' % oid(1).encode(),
        b'{"kind":"endpoint","put":{"id":"%s","name":"ep","network_id":"%s","sandbox_id":"%s",'
        b'"addresses":["10.1.0.5/24"],"revision":4}}' % (oid(1001).encode(), oid(1).encode(), oid(101).encode()),
    ]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\n".join(old) + b"\n")

    objects, position = load(path)
    again = load(path)

    assert Position(store_id="s", revision=0) == position
    assert {network().ref, endpoint().ref} == set(objects)
    assert {0} == {one.revision for one in objects.values()}
    assert (objects, position) == again


def test_what_is_gone_and_was_never_there_is_no_error(path):
    journal = Journal(path)
    journal.load()
    journal.append(gone(3, sandbox()))
    journal.close()

    assert {} == load(path)[0]


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_last_line_is_dropped_and_the_next_one_is_whole(path, cut):
    keep(path, network(), sandbox())
    data = path.read_bytes()
    path.write_bytes(data[:-cut])

    journal = Journal(path)
    objects, _ = journal.load()
    journal.append(put(9, endpoint()))
    journal.close()

    assert {network().ref: network()} == objects
    assert [network().ref, endpoint().ref] == list(load(path)[0])


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"5",
        b"[]",
        b"null",
        b'{"kind":"volume","put":{}}',
        b'{"kind":"network"}',
        b'{"kind":"network","put":[]}',
        b'{"kind":"network","put":{"id":"x"}}',
        b'{"kind":"network","put":{"id":"x","name":"n","driver":"d","colour":1}}',
        b'{"kind":"network","put":{"id":"x","name":"n","driver":"d","subnets":[{"subnet":"10.0.0.1/8","gateway":null}]}}',
        b'{"kind":"endpoint","put":{"id":"x","name":"n","network_id":"y","sandbox_id":"z","addresses":["nowhere"]}}',
        b'{"position":{"revision":1,"colour":2}}',
        b'{"journal":99}',
        b"\xff\xfe",
    ],
)
def test_a_broken_line_is_named_and_nothing_is_touched(path, line):
    keep(path, network())
    data = path.read_bytes() + line + b"\n"
    path.write_bytes(data)

    with pytest.raises(FailedPrecondition, match="not readable at line 4") as caught:
        load(path)

    assert "JOURNAL_BROKEN" == caught.value.reason
    assert data == path.read_bytes()


def full(*_args):
    raise OSError(28, "No space left on device")


def short(fd, data):
    return REAL_WRITE(fd, data[: len(data) // 2])


REAL_WRITE = os.write


@pytest.mark.parametrize("write", [full, short], ids=["no space", "short write"])
def test_a_full_disk_leaves_the_file_as_it_was_and_later_writes_work(path, monkeypatch, write):
    journal = Journal(path)
    journal.load()
    journal.append(put(1, network()))
    before = path.read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "write", write)
        with pytest.raises(Exhausted, match=r"cannot write its journal .*: No space left on device") as caught:
            journal.append(put(2, sandbox()), Position(store_id="s", revision=2))
    after = path.read_bytes()
    journal.append(put(3, endpoint()))
    journal.close()

    assert "JOURNAL_FULL" == caught.value.reason
    assert before == after
    assert [network().ref, endpoint().ref] == list(load(path)[0])


@pytest.fixture
def limited():
    """Let the kernel take no more than 64 KiB of a file: a write over it is cut short, the next one refused."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_the_kernel_cuts_short_leaves_the_file_as_it_was(path, limited):
    journal = Journal(path)
    journal.load()
    kept = 0
    while True:
        try:
            journal.append(put(1, sandbox(100 + kept, hostname="h" * 100)))
        except Exhausted:
            break
        kept += 1
    with pytest.raises(Exhausted):
        journal.compact([sandbox(100 + one, hostname="h" * 200) for one in range(kept)], Position())
    journal.close()

    assert kept > 50
    assert kept == len(load(path)[0])
    assert ["journal"] == [one.name for one in path.parent.iterdir()]


def test_an_agent_starts_on_a_full_disk_and_drops_a_torn_line(path, monkeypatch):
    keep(path, network(), sandbox())
    path.write_bytes(path.read_bytes()[:-5])

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        journal = Journal(path)
        objects, _ = journal.load()
    journal.append(put(2, endpoint()))
    journal.close()

    assert [network().ref] == list(objects)
    assert [network().ref, endpoint().ref] == list(load(path)[0])


def test_compaction_keeps_exactly_the_live_objects_and_the_position(path):
    journal = Journal(path)
    journal.load()
    for revision in range(1, 200):
        journal.append(put(revision, sandbox(hostname=f"h{revision}")), Position(store_id="s", revision=revision))
    journal.append(gone(200, network()))
    size = path.stat().st_size

    journal.compact([sandbox(hostname="last")], Position(store_id="s", revision=200))
    journal.append(put(201, endpoint()))
    journal.close()

    assert size > 20 * path.stat().st_size
    objects, position = load(path)
    assert {sandbox().ref: sandbox(hostname="last"), endpoint().ref: replace(endpoint(), revision=201)} == objects
    assert Position(store_id="s", revision=200) == position
    assert ["journal"] == [one.name for one in path.parent.iterdir()]


def test_compaction_is_wanted_when_most_is_stale_and_not_again_at_once_after_a_refusal(path, monkeypatch):
    monkeypatch.setattr(module, "COMPACT_BYTES", 1000)
    journal = Journal(path)
    journal.load()
    while not journal.wants_compaction():
        journal.append(put(1, sandbox()))
    monkeypatch.setattr(module.os, "fsync", full)

    with pytest.raises(Exhausted):
        journal.compact([sandbox()], Position())

    assert not journal.wants_compaction()
    journal.append(put(2, sandbox()))
    journal.close()
    assert 2 == load(path)[0][sandbox().ref].revision


texts = st.text(max_size=8)
numbers = st.integers(1, 3)
objects = st.one_of(
    st.builds(lambda n, name: Network(id=oid(n), name=name, driver="bridge", options={name: name}), numbers, texts),
    st.builds(lambda n, name: sandbox(n, hostname=name, extra_hosts=((name, name),)), numbers, texts),
    st.builds(lambda n, name: endpoint(n, dns_names=(name,)), numbers, texts),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(objects, st.booleans()), max_size=12), st.integers(0, 12))
def test_what_comes_back_is_what_a_dictionary_would_hold(tmp_path, changes, compact_after):
    path = tmp_path / "journal"
    path.unlink(missing_ok=True)
    journal = Journal(path)
    journal.load()
    expected = {}
    for place, (item, stays) in enumerate(changes):
        journal.append([Change(ref=item.ref, revision=place, put=item if stays else None)])
        expected.pop(item.ref, None)
        if stays:
            expected[item.ref] = item
        if place == compact_after:
            journal.compact(expected.values(), Position())
    journal.close()

    assert expected == load(path)[0]
