"""`netweft pool` and `netweft lease` against the service, which is all that they need."""

from __future__ import annotations

import json

import grpc
import pytest
from netweft.ipam.v1 import ipam_pb2 as pb
from netweft.ipam.v1 import ipam_pb2_grpc
from netweft_cli import main

from tests.support.ipam_process import IpamProcess

POOL = "LocalDefault/10.1.0.0/29"


@pytest.fixture(scope="module")
def target(server, tmp_path_factory):
    process = IpamProcess(server.url, tmp_path_factory.mktemp("ipam"), "--key-prefix", "commands")
    process.start()
    yield process.target
    assert 0 == process.stop()


@pytest.fixture
def stub(target):
    with grpc.insecure_channel(target) as channel:
        yield ipam_pb2_grpc.IpamServiceStub(channel)


@pytest.fixture(autouse=True)
def pool(target, stub, monkeypatch, tmp_path):
    monkeypatch.setenv("NETWEFT_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("NETWEFT_TARGET_IPAM", target)
    monkeypatch.delenv("NETWEFT_TARGET", raising=False)
    stub.RequestPool(pb.RequestPoolRequest(address_space="LocalDefault", subnet="10.1.0.0/29"))
    owner = pb.Owner(key="endpoint/web", host_id="host-1")
    stub.RequestAddresses(pb.RequestAddressesRequest(items=[pb.AddressRequest(pool_id=POOL, owner=owner)]))
    yield
    for lease in stub.ListLeases(pb.ListLeasesRequest(pool_id=POOL)).leases:
        item = pb.AddressRelease(pool_id=POOL, address=lease.address.partition("/")[0])
        stub.ReleaseAddresses(pb.ReleaseAddressesRequest(items=[item]))
    stub.ReleasePool(pb.ReleasePoolRequest(pool_id=POOL))


@pytest.fixture
def netweft(capsys):
    def run(*arguments: str, code: int = 0) -> str:
        assert code == main.main(list(arguments)), capsys.readouterr().err
        out, err = capsys.readouterr()
        return err if code else out

    return run


def test_a_name_keeps_an_address_until_it_is_released(netweft):
    assert "10.1.0.5/29\n" == netweft("lease", "reserve", POOL, "printer", "--ip", "10.1.0.5", "-o", "name")
    assert "10.1.0.5/29\n" == netweft("lease", "reserve", POOL, "printer", "--ip", "10.1.0.5", "-o", "name")
    assert "held by" not in netweft("lease", "ls", POOL)
    assert "10.1.0.1/29\n10.1.0.5/29\n" == netweft("lease", "ls", POOL, "-o", "name")
    assert "ADDRESS_IN_USE" in netweft("lease", "reserve", POOL, "scanner", "--ip", "10.1.0.5", code=5)
    assert "10.1.0.5/29\n" == netweft("lease", "release", "10.1.0.5")
    assert "10.1.0.1/29\n" == netweft("lease", "ls", POOL, "-o", "name")
    assert "LEASE_UNKNOWN" in netweft("lease", "release", "10.1.0.5", code=3)


def test_what_an_endpoint_holds_is_released_by_force_alone(netweft):
    said = netweft("lease", "release", "10.1.0.1", code=5)
    assert "endpoint/web" in said
    assert "--force" in said
    assert "10.1.0.1/29\n" == netweft("lease", "release", "--force", "10.1.0.1")


def test_an_address_tells_who_has_it_and_what_happened_to_it(netweft):
    netweft("lease", "reserve", POOL, "printer", "--ip", "10.1.0.5")
    netweft("lease", "release", "10.1.0.5")
    netweft("lease", "reserve", POOL, "printer", "--ip", "10.1.0.5")

    [found] = json.loads(netweft("lease", "inspect", "10.1.0.5", "--address-space", "LocalDefault"))

    assert ("printer", "reservation") == (found["lease"]["owner"]["key"], found["lease"]["owner"]["kind"])
    assert found["lease"]["create_time"]
    assert ["leased", "released", "leased"] == [event["type"] for event in found["events"]]


def test_a_pool_tells_how_full_it_is(netweft):
    netweft("lease", "reserve", POOL, "printer")
    netweft("lease", "reserve", POOL, "scanner")
    netweft("lease", "release", "10.1.0.2")

    [pool] = json.loads(netweft("pool", "inspect", POOL))
    titles, row = (line.split("  ") for line in netweft("pool", "ls", "-o", "wide").splitlines())

    use = pool["use"]
    assert (6, 2, 1, 2) == (use["capacity"], use["leased"], use["quarantined"], use["reserved"])
    table = dict(zip(*([cell.strip() for cell in line if cell.strip()] for line in (titles, row)), strict=True))
    assert ("2", "1", "3", "6", "2") == tuple(
        table[title] for title in ("LEASED", "RESTING", "FREE", "CAPACITY", "RESERVED")
    )


def test_what_happens_to_addresses_is_watched_from_an_event_on(netweft, stub):
    netweft("lease", "reserve", POOL, "printer", "--ip", "10.1.0.5")
    events = stub.ListLeaseEvents(pb.ListLeaseEventsRequest(pool_id=POOL)).events
    netweft("lease", "release", "10.1.0.5")

    [line] = netweft("lease", "watch", POOL, "--since", events[1].id, "--limit", "2", "-o", "json").splitlines()[1:]
    text = netweft("lease", "watch", POOL, "--since", events[0].id, "--limit", "1")

    assert ("released", "10.1.0.5/29") == (json.loads(line)["type"], json.loads(line)["address"])
    assert "released  10.1.0.5/29  printer" in text


def test_an_address_of_two_spaces_is_named_with_its_space(netweft, stub):
    other = stub.RequestPool(pb.RequestPoolRequest(address_space="other", subnet="10.1.0.0/29")).pool.id
    netweft("lease", "reserve", other, "printer", "--ip", "10.1.0.5")
    netweft("lease", "reserve", POOL, "printer", "--ip", "10.1.0.5")

    said = netweft("lease", "inspect", "10.1.0.5", code=2)
    netweft("lease", "release", "10.1.0.5", "--address-space", "other")
    stub.ReleasePool(pb.ReleasePoolRequest(pool_id=other))

    assert "--address-space" in said
    assert "10.1.0.5/29\n" == netweft("lease", "inspect", "10.1.0.5", "-o", "name")


def test_a_hosts_leases_are_found_by_its_id_without_a_controller(netweft, stub):
    for key, host_id in (("endpoint/db", "host-2"), ("endpoint/job", "abcdef012345abcdef")):
        owner = pb.Owner(key=key, host_id=host_id)
        stub.RequestAddresses(pb.RequestAddressesRequest(items=[pb.AddressRequest(pool_id=POOL, owner=owner)]))

    assert "10.1.0.1/29\n" == netweft("lease", "ls", "--host", "host-1", "-o", "name")
    assert "10.1.0.2/29\n" == netweft("lease", "ls", POOL, "--host", "host-2", "-o", "name")
    # As tables show it, and as agents call themselves.
    assert "10.1.0.3/29\n" == netweft("lease", "ls", "--host", "abcdef012345", "-o", "name")
    assert "" == netweft("lease", "ls", "--host", "0" * 32, "-o", "name")


def test_a_host_that_no_lease_has_needs_a_controller_to_be_known_by_name(netweft, stub):
    owner = pb.Owner(key="endpoint/db", host_id="host-2")
    stub.RequestAddresses(pb.RequestAddressesRequest(items=[pb.AddressRequest(pool_id=POOL, owner=owner)]))

    said = netweft("lease", "ls", "--host", "web-1", code=7)
    several = netweft("lease", "ls", "--host", "host-", code=2)

    assert "HOST_NAME_UNRESOLVED" in said
    assert "web-1" in said
    assert "controller" in said
    assert "HOST_AMBIGUOUS" in several
    assert "host-1, host-2" in several


def test_an_address_that_nobody_has_any_more_still_has_its_history(netweft, stub):
    netweft("lease", "reserve", POOL, "printer", "--ip", "10.1.0.5")
    netweft("lease", "release", "10.1.0.5")

    text = netweft("lease", "history", "10.1.0.5", "--limit", "2").splitlines()
    [newest] = netweft("lease", "history", "10.1.0.5", "--limit", "1", "-o", "json").splitlines()

    assert [["released", "10.1.0.5/29", "printer", "-"], ["leased", "10.1.0.5/29", "printer", "-"]] == [
        line.split()[1:] for line in text
    ]
    assert "released" == json.loads(newest)["type"]
    assert "ADDRESS_UNKNOWN" in netweft("lease", "history", "192.0.2.1", code=3)
    assert "ADDRESS_MALFORMED" in netweft("lease", "history", "10.1.0.5/29", code=2)
    other = stub.RequestPool(pb.RequestPoolRequest(address_space="other", subnet="10.1.0.0/29")).pool.id
    assert "LocalDefault, other" in netweft("lease", "history", "10.1.0.5", code=2)
    assert "" == netweft("lease", "history", "10.1.0.5", "--address-space", "other")
    stub.ReleasePool(pb.ReleasePoolRequest(pool_id=other))


def test_what_is_free_is_what_a_quota_still_allows(netweft, stub):
    labels = {"netweft.quota.leases": "2"}
    pool = stub.RequestPool(pb.RequestPoolRequest(address_space="quota", subnet="10.1.0.0/28", labels=labels)).pool.id
    netweft("lease", "reserve", pool, "printer")

    titles, row = (line.split() for line in netweft("pool", "ls", "--address-space", "quota").splitlines())
    netweft("lease", "release", "10.1.0.1", "--address-space", "quota")
    stub.ReleasePool(pb.ReleasePoolRequest(pool_id=pool))

    assert ("1", "1", "14") == tuple(row[titles.index(title)] for title in ("LEASED", "FREE", "CAPACITY"))
