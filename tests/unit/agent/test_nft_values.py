from __future__ import annotations

import ipaddress
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netweft_agent.domain import nft
from netweft_agent.kernel import nft_values
from netweft_common import errors

little = pytest.mark.skipif(sys.byteorder != "little", reason="bytes are written down for a little endian host")


@little
@pytest.mark.parametrize(
    ("kind", "value", "data"),
    [
        (nft.IPV4_ADDR, "192.0.2.1", "c0000201"),
        (nft.IPV6_ADDR, "fd00::1", "fd000000000000000000000000000001"),
        (nft.IPV6_ADDR, "::ffff:192.0.2.1", "00000000000000000000ffffc0000201"),
        (nft.ETHER_ADDR, "02:42:0a:00:00:02", "02420a000002"),
        (nft.INET_PROTO, "tcp", "06"),
        (nft.INET_PROTO, 99, "63"),
        (nft.INET_SERVICE, 8080, "1f90"),
        (nft.IFNAME, "eth0", "65746830" + "00" * 12),
        (nft.MARK, 0x10, "10000000"),
        (nft.IFACE_INDEX, 7, "07000000"),
        (nft.CT_STATE, "established,related", "06000000"),
        (nft.CT_STATUS, "dnat", "20000000"),
        (nft.FIB_ADDRTYPE, "local", "02000000"),
        (nft.ICMP_TYPE, "echo-request", "08"),
        (nft.ICMPV6_TYPE, "nd-router-advert", "86"),
        (nft.ARP_OP, "reply", "0002"),
        (nft.NF_PROTO, "ipv6", "0a"),
        (nft.VXLAN_VNI.type, 4096, "001000"),
    ],
    ids=lambda value: value.name if isinstance(value, nft.Type) else None,
)
def test_values_become_the_kernels_bytes_and_come_back(kind, value, data):
    assert data == nft_values.encode(kind, value).hex()
    if value != "::ffff:192.0.2.1":  # ipaddress writes it ::ffff:c000:201, which is as canonical as can be
        assert value == nft_values.decode(kind, bytes.fromhex(data))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (nft.IPV4_ADDR, "10.0.0"),
        (nft.IPV4_ADDR, 10),
        (nft.IPV6_ADDR, "10.0.0.1"),
        (nft.ETHER_ADDR, "02:42"),
        (nft.INET_SERVICE, 65536),
        (nft.INET_SERVICE, "http"),
        (nft.IFNAME, "a-name-of-17-bytes"),
        (nft.INET_PROTO, "no-such-protocol"),
        (nft.CT_STATE, "no-such-state"),
        (nft.MARK, -1),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_is_refused_by_name(kind, value):
    with pytest.raises(errors.Internal) as caught:
        nft_values.encode(kind, value)

    assert str(value) in caught.value.message


@pytest.mark.parametrize("prefix", ["10.0.0.1/24", "10.0.0.0/33", "10.0.0.0/x"], ids=str)
def test_a_prefix_with_host_bits_is_refused(prefix):
    with pytest.raises((errors.Internal, ValueError)):
        nft_values.encode_range(nft.IPV4_ADDR, prefix)


@given(first=st.integers(0, 2**32 - 1), last=st.integers(0, 2**32 - 1))
def test_any_range_of_addresses_reads_back_as_the_shortest_that_says_it(first, last):
    first, last = sorted((first, last))
    low, high = first.to_bytes(4, "big"), last.to_bytes(4, "big")

    text = nft_values.decode_range(nft.IPV4_ADDR, low, high)

    assert (low, high) == nft_values.encode_range(nft.IPV4_ADDR, text)
    networks = list(ipaddress.summarize_address_range(ipaddress.IPv4Address(first), ipaddress.IPv4Address(last)))
    if len(networks) == 1:
        assert str(networks[0]).removesuffix("/32") == text


@given(st.ip_addresses(v=6), st.integers(0, 65535))
def test_any_concatenated_key_reads_back(address, port):
    codec = nft_values.codec((nft.IPV6_ADDR, nft.INET_PROTO, nft.INET_SERVICE))

    data = codec.encode((str(address), "udp", port))

    assert 24 == codec.size == len(data)
    assert (str(address), "udp", port) == codec.decode(data)


@pytest.mark.parametrize("item", [("10.0.0.1",), ("10.0.0.1", 80, 81), (80, "10.0.0.1")], ids=str)
def test_a_key_of_other_fields_is_refused(item):
    codec = nft_values.codec((nft.IPV4_ADDR, nft.INET_SERVICE))

    with pytest.raises(errors.Internal):
        codec.encode(item)


@pytest.mark.parametrize(
    "kinds",
    [(nft.IPV4_ADDR,), (nft.IPV4_ADDR, nft.INET_PROTO, nft.INET_SERVICE), (nft.IFNAME, nft.IFNAME), (nft.MARK,)],
    ids=lambda kinds: " . ".join(kind.name for kind in kinds),
)
def test_types_come_back_from_their_number(kinds):
    number, size = nft_values.type_number(kinds), nft_values.codec(kinds).size

    assert kinds == nft_values.types_of(number, size)


def test_a_type_that_we_do_not_know_is_a_number_of_its_size():
    assert (nft.Type("integer", 4, 9, 0),) == nft_values.types_of(63, 9)
