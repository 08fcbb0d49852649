"""Leases are written past protobuf's objects, and read past Redis's: both against the plain way."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st
from netweft.ipam.v1 import ipam_pb2
from netweft_common import errors
from netweft_ipam.domain import rows
from netweft_ipam.domain.leases import Lease, LeaseColumns, LeaseHolder, Owner, OwnerKind
from netweft_ipam.rpc import convert, leasewire
from netweft_ipam.store import keys, records

from tests.support.ipam import pool_id

POOLS = ["g/10.0.0.0/8", "g/10.1.0.0/16", "g/192.168.100.0/24/192.168.100.128/25", "g/fd00::/64", "g/2001:db8::/120"]
TIMES = [1, 999, 1_000, 1_800_000_000_000, 1_800_000_000_001, (1 << 48) - 1]
owner_keys = st.text(min_size=1, max_size=64) | st.sampled_from(["e" * 64, "f" * 250])
host_ids = st.sampled_from(["", "h", "host-1", "a" * 64])


@st.composite
def columns(draw, pool):
    subnet = pool_id(pool).subnet
    addresses = sorted(draw(st.sets(st.integers(subnet.base, subnet.last), max_size=20)))
    if draw(st.booleans()):
        addresses = sorted({*addresses, *range(*(min(subnet.last, subnet.base + at) for at in (190, 270)))})
    holders = draw(st.lists(st.tuples(host_ids, st.sampled_from(OwnerKind)), min_size=1, max_size=4))
    names = draw(st.lists(owner_keys, min_size=1, max_size=3))
    times = draw(st.lists(st.sampled_from(TIMES), min_size=1, max_size=3))
    ends = draw(st.lists(st.sampled_from([0, 0, *TIMES]), min_size=1, max_size=3))
    first = draw(st.sampled_from([1, 127, 128, 16_383, 16_384, 117_670_000_000_000, (1 << 48) - 1000]))
    count = range(len(addresses))
    texts = [names[at % len(names)].encode() for at in count]
    return LeaseColumns(
        addresses=addresses,
        keys=texts,
        epochs=[first + at for at in count],
        created_ms=[times[at % len(times)] for at in count],
        expires_ms=[ends[at % len(ends)] for at in count],
        holders=[LeaseHolder(*holders[at % len(holders)], len(key)) for at, key in enumerate(texts)],
    )


@given(pool=st.sampled_from(POOLS), data=st.data())
def test_a_page_is_what_the_librarys_own_objects_make_of_it(pool, data):
    leases = data.draw(columns(pool))
    pool = pool_id(pool)
    token = data.draw(st.sampled_from(["", "MWY="]))
    expected = ipam_pb2.ListLeasesResponse(next_page_token=token)
    writer = convert.LeaseWriter()
    for lease in leases.leases(pool):
        writer.write(lease, expected.leases.add())
    written = leasewire.listed(pool, leases, next_page_token=token)
    assert expected == ipam_pb2.ListLeasesResponse.FromString(written)


@given(pool=st.sampled_from(POOLS), data=st.data())
def test_an_answer_is_what_the_librarys_own_objects_make_of_it(pool, data):
    leases = data.draw(columns(pool)).leases(pool_id(pool))
    leases = data.draw(st.permutations(leases)) if len(leases) < 30 else leases[::-1]
    expected = ipam_pb2.RequestAddressesResponse()
    writer = convert.LeaseWriter()
    for lease in leases:
        writer.write(lease, expected.results.add().lease)
    written = leasewire.granted(leases)
    assert written is None if len(leases) < 8 else written == expected


def test_an_answer_with_a_refusal_or_of_two_pools_is_left_to_the_library():
    first, second = (
        [Lease(pool_id(pool), pool_id(pool).subnet.base + at, Owner("k"), 1, 1) for at in range(1, 9)]
        for pool in POOLS[:2]
    )
    assert leasewire.granted(first) is not None
    assert leasewire.granted([*first, errors.NotFound("POOL_UNKNOWN", "gone")]) is None
    assert leasewire.granted([*first, *second]) is None


record = st.fixed_dictionaries(
    {
        "slot": st.integers(0, 15),
        "kind": st.integers(0, 3),
        "held": st.sampled_from([True, True, True, False]),
        "pool": st.sampled_from([1, 1, 1, 2]),
        "host": st.integers(0, 3),
        "epoch": st.integers(1, (1 << 48) - 1),
        "time": st.integers(0, (1 << 48) - 1),
        "ttl": st.sampled_from([0, 0, 0, 30]),
        "renewed": st.integers(0, 1 << 41),
        "key": st.sampled_from(["k", "key", "key2", "ü" * 128]),
    }
)


def pack(fields):
    key = fields["key"].encode()
    first = fields["slot"] + fields["kind"] * 16 + fields["held"] * 64 + (fields["ttl"] > 0) * 128
    head = struct.pack(">BBHI", first, len(key) - 1, fields["pool"], fields["host"])
    own = struct.pack(">I", fields["ttl"]) + fields["renewed"].to_bytes(6, "big") if fields["ttl"] else b""
    return head + fields["epoch"].to_bytes(6, "big") + fields["time"].to_bytes(6, "big") + own + key


@given(st.lists(st.lists(record, min_size=1, max_size=16, unique_by=lambda fields: fields["slot"]), max_size=6))
def test_blocks_of_records_are_read_as_one_record_after_the_other(blocks):
    pool = pool_id("g/10.1.0.0/16")
    layout = keys.layout("p", pool)
    hosts = {1: (1 << 40, "h1"), 2: (0, "h2")}
    packed = [(b"%04x" % (number * 3))[-3:] for number in range(len(blocks))]
    packed = [(name, b"".join(map(pack, block))) for name, block in zip(packed, blocks, strict=True)]
    expected = []
    for name, text in packed:
        at, found = 0, {}
        while at < len(text):
            address = pool.subnet.base + int(name, 16) * 16 + (text[at] & 15)
            found[address], at = records.read(text, at, address)
        expected += [read.lease(pool, hosts) for _, read in sorted(found.items()) if read.held and read.pool == 1]
    assert expected == records.read_leases(layout, 1, packed, hosts).leases(pool)


@given(
    # As a pool fills up: blocks of records of one size, with gaps, and now and then one that is not like them.
    st.lists(st.sampled_from(["full", "full", "half", "rested", "other key", "mixed keys", "ttl"]), max_size=60),
    st.sampled_from([OwnerKind.ENDPOINT, OwnerKind.RESERVATION]),
)
def test_long_runs_of_blocks_are_read_as_one_record_after_the_other(shapes, kind):
    pool = pool_id("g/10.1.0.0/16")
    layout = keys.layout("p", pool)
    hosts = {1: (1 << 40, "h1"), 2: (0, "h2")}
    blocks, expected = [], []
    for number, shape in enumerate(shapes):
        found = []
        for slot in range(0, 16, 2 if shape == "half" else 1):
            name = f"{number:04x}{slot:02x}"
            fields = {
                "slot": slot,
                "kind": kind,
                "held": shape != "rested" or slot % 3 > 0,
                "pool": 1,
                "host": slot % 3,
            }
            fields |= {"epoch": (number << 40) + slot * 129 + 1, "time": 1_800_000_000_000 + number % 4}
            fields |= {"ttl": 30 * (shape == "ttl"), "renewed": 0}
            fields["key"] = name + "x" * (shape == "other key" or (shape == "mixed keys" and slot % 2))
            found.append(fields)
        text = b"".join(map(pack, found))
        blocks.append((b"%03x" % number, text))
        at = 0
        for fields in found:
            lease, at = records.read(text, at, pool.subnet.base + number * 16 + fields["slot"])
            if lease.held:
                expected.append(lease.lease(pool, hosts))
    assert expected == records.read_leases(layout, 1, [*blocks, (b"fff", None)], hosts).leases(pool)


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=600))
def test_numbers_are_cut_out_of_rows_as_struct_cuts_them_one_by_one(values):
    packed = b"".join(struct.pack(">xQ3s", value, b"%03d" % (value % 1000)) for value in values)

    assert values == list(rows.numbers(packed, size=12, at=1, width=8))
    assert [value & 0xFFFF for value in values] == list(rows.numbers(packed, size=12, at=7, width=2))
    assert [b"%03d" % (value % 1000) for value in values] == rows.cut(packed, "9x3s")
    assert [value.to_bytes(8, "little")[2] for value in values] == list(rows.planes(values)[2])
