"""What clients of the API may count on, method by method."""

from __future__ import annotations

import asyncio

import pytest
from netweft.agent.v1 import agent_pb2
from netweft.common.v1 import endpoint_pb2 as common_endpoint_pb2
from netweft.common.v1 import host_pb2 as common_host_pb2
from netweft.common.v1 import network_pb2 as common_network_pb2
from netweft.common.v1 import sandbox_pb2 as common_sandbox_pb2
from netweft.controller.v1 import endpoint_pb2, event_pb2, host_pb2, network_pb2, sandbox_pb2
from netweft_common import errors, status
from netweft_controller.rpc.events import EventService
from netweft_controller.store.redis import RedisStore

pytestmark = pytest.mark.anyio

Subnet = common_network_pb2.Subnet


def ref(container="c1", host="h1", **fields):
    return endpoint_pb2.SandboxRef(spec=endpoint_pb2.SandboxSpec(host=host, container_id=container, **fields))


# Networks


async def test_a_network_is_answered_with_all_that_was_chosen_for_it(world, face):
    network = await face.network(
        subnets=[Subnet(subnet="10.1.0.0/16", ip_range="10.1.2.0/24", aux_addresses={"router": "10.1.2.1"})],
        enable_ipv6=True,
        options={"com.docker.network.driver.mtu": "1400"},
        labels={"a": "b"},
        internal=True,
    )

    assert ["10.1.0.0/16", "fd00:0:0:1::/64"] == [subnet.subnet for subnet in network.subnets]
    assert ["10.1.2.0", "fd00:0:0:1::1"] == [subnet.gateway for subnet in network.subnets]
    assert {"mtu": "1400"} == dict(network.options)
    assert common_network_pb2.SCOPE_LOCAL == network.scope
    assert "LocalDefault" == network.address_space
    assert network.revision > 0
    assert network.create_time.seconds > 0
    got = await face.networks.GetNetwork(network_pb2.GetNetworkRequest(network="front"))
    assert network == got.network


async def test_validate_only_answers_and_makes_nothing(world, face):
    network = await face.network(validate_only=True, subnets=[Subnet(subnet="10.1.0.0/16")])

    assert ("front", "") == (network.name, network.id)
    assert {} == world.ipam.pools
    assert {} == face.state.networks
    with pytest.raises(errors.InvalidArgument, match="host bits"):
        await face.network(validate_only=True, subnets=[Subnet(subnet="10.1.0.1/16")])


async def test_a_network_whose_subnet_overlaps_is_refused_and_leaves_nothing(world, face):
    await face.network(subnets=[Subnet(subnet="10.1.0.0/16")])

    with pytest.raises(errors.FailedPrecondition):
        await face.network("other", subnets=[Subnet(subnet="10.9.0.0/16"), Subnet(subnet="10.1.2.0/24")])

    assert ["LocalDefault/10.1.0.0/16"] == list(world.ipam.pools)


async def test_a_bad_field_changes_nothing_and_is_named(world, face):
    with pytest.raises(errors.InvalidArgument) as caught:
        await face.network(subnets=[Subnet(subnet="10.1.0.0/16", gateway="10.2.0.1")])

    assert "subnets[0].gateway" == caught.value.field
    assert {} == world.ipam.pools
    assert 0 == world.ipam.calls["RequestPool"]


async def test_networks_are_listed_by_name_filtered_and_in_pages(face):
    for name in ("c", "a", "b"):
        await face.network(name, labels={"tier": name}, internal=name == "b")

    async def listed(**fields):
        response = await face.networks.ListNetworks(network_pb2.ListNetworksRequest(**fields))
        return [network.name for network in response.networks], response.next_page_token

    first, token = await listed(page_size=2)
    assert (["a", "b"], (["c"], "")) == (first, await listed(page_size=2, page_token=token))
    assert (["b"], "") == await listed(filters=["internal=true"])
    assert (["c"], "") == await listed(filters=["label=tier=c", "driver=bridge", "scope=local"])
    with pytest.raises(errors.InvalidArgument):
        await listed(filters=["colour=red"])
    with pytest.raises(errors.InvalidArgument):
        await listed(page_size=-1)


async def test_a_network_with_endpoints_is_not_deleted(face, make_item):
    await face.network()
    await face.attach(make_item(name="web"))

    with pytest.raises(errors.FailedPrecondition, match="web"):
        await face.networks.DeleteNetwork(network_pb2.DeleteNetworkRequest(network="front"))

    assert "ready" == next(iter(face.state.networks.values())).value.state


async def test_a_deletion_is_done_once_a_request_and_unknown_networks_are_not_found(face):
    await face.network()
    request = network_pb2.DeleteNetworkRequest(request_id="r1", network="front")
    await face.networks.DeleteNetwork(request)
    await face.network()

    await face.networks.DeleteNetwork(request)

    assert 1 == len(face.state.networks)
    with pytest.raises(errors.NotFound):
        await face.networks.DeleteNetwork(network_pb2.DeleteNetworkRequest(network="nope"))


# Attach


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"network": ""}, "FIELD_MISSING", "items[0].endpoint.network"),
        ({"network": "nope"}, "NETWORK_NOT_FOUND", "items[0].endpoint.network"),
        ({"name": "a b"}, "NAME_MALFORMED", "items[0].endpoint.name"),
        ({"addresses": ["10.9.0.1"]}, "ADDRESS_OUTSIDE_SUBNET", "items[0].endpoint.addresses[0]"),
        ({"addresses": ["10.1.0.1/24"]}, "ADDRESS_MALFORMED", "items[0].endpoint.addresses[0]"),
        ({"addresses": ["10.1.0.5", "10.1.0.6"]}, "ADDRESS_TWICE", "items[0].endpoint.addresses[1]"),
        ({"addresses": ["10.1.0.0"]}, "ADDRESS_RESERVED", "items[0].endpoint.addresses[0]"),
        ({"mac_address": "01:00:00:00:00:00"}, "MAC_MULTICAST", "items[0].endpoint.mac_address"),
        ({"interface_name": "a/b"}, "INTERFACE_NAME_MALFORMED", "items[0].endpoint.interface_name"),
        ({"interface_name": "a" * 16}, "INTERFACE_NAME_TOO_LONG", "items[0].endpoint.interface_name"),
        ({"dns_names": ["a b"]}, "HOST_NAME_MALFORMED", "items[0].endpoint.dns_names[0]"),
        ({"options": {"x": "y"}}, "OPTION_UNKNOWN", "items[0].endpoint.options"),
        ({"labels": {"": "y"}}, "LABEL_MALFORMED", "items[0].endpoint.labels"),
        ({"container": "a/b"}, "CONTAINER_ID_MALFORMED", "items[0].sandbox.spec.container_id"),
        ({"container": ""}, "CONTAINER_ID_MALFORMED", "items[0].sandbox.spec.container_id"),
        ({"host": ""}, "HOST_MISSING", "items[0].sandbox.spec.host"),
        ({"host": "nope"}, "HOST_NOT_FOUND", "items[0].sandbox.spec.host"),
    ],
)
async def test_a_bad_item_is_refused_by_its_field_and_the_others_go_on(  # noqa: PLR0917  # asked for by name
    world, face, make_item, fields, reason, field
):
    await face.network(subnets=[Subnet(subnet="10.1.0.0/24")])

    bad, good = await face.attach(make_item(**{"name": "bad", **fields}), make_item(name="good", container="c9"))

    assert (reason, field) == (bad.status.reason, bad.status.metadata["field"]), bad.status
    assert 0 == good.status.code
    assert 1 == len(world.ipam.endpoint_leases())
    assert ["c9"] == [record.value.container_id for record in face.state.sandboxes.values()]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"namespace": common_sandbox_pb2.Namespace(path="x")}, "namespace.path"),
        ({"namespace": common_sandbox_pb2.Namespace(pid=0)}, "namespace.pid"),
        ({"hosts_path": "x"}, "hosts_path"),
        ({"resolv_conf_path": "/a/../b"}, "resolv_conf_path"),
        ({"hostname": "a b"}, "hostname"),
        ({"domainname": "-"}, "domainname"),
        ({"dns": common_sandbox_pb2.DnsConfig(servers=["x"])}, "dns.servers[0]"),
        ({"dns": common_sandbox_pb2.DnsConfig(search=["x\ny"])}, "dns.search[0]"),
        ({"dns": common_sandbox_pb2.DnsConfig(options=["x y"])}, "dns.options[0]"),
        ({"extra_hosts": [common_sandbox_pb2.ExtraHost(name="a", address="x")]}, "extra_hosts[0].address"),
    ],
)
async def test_a_bad_sandbox_is_refused_by_its_field(face, spec, field):
    with pytest.raises(errors.InvalidArgument) as caught:
        await face.sandboxes.CreateSandbox(
            sandbox_pb2.CreateSandboxRequest(
                sandbox=endpoint_pb2.SandboxSpec(**{"host": "h1", "container_id": "c1", **spec})
            )
        )

    assert f"sandbox.{field}" == caught.value.field


@pytest.mark.parametrize("count", [0, 1025])
async def test_a_batch_of_no_or_too_many_items_is_refused(face, make_item, count):
    with pytest.raises(errors.InvalidArgument, match="1 to 1024"):
        await face.attach(*[make_item()] * count)
    with pytest.raises(errors.InvalidArgument, match="1 to 1024"):
        await face.detach(*["x"] * count)


async def test_an_item_without_a_sandbox_is_refused(face):
    with pytest.raises(errors.InvalidArgument) as caught:
        await face.attach(endpoint_pb2.AttachItem(endpoint=endpoint_pb2.EndpointSpec(network="n")))

    assert "items[0].sandbox" == caught.value.field


async def test_a_name_twice_in_a_batch_is_one_endpoint(world, face, make_item):
    await face.network()

    first, second = await face.attach(make_item(name="web"), make_item(name="web", container="c2"))

    assert ("", "ENDPOINT_EXISTS") == (first.status.reason, second.status.reason)
    assert ["c1"] == [record.value.container_id for record in face.state.sandboxes.values()]


async def test_defaults_are_names_from_the_id_and_the_only_host(world, make_item):
    face = await world.start_controller()
    await world.add_host(face, "h1", 1)
    await face.network()

    (result,) = await face.attach(make_item(host="", dns_names=["db"]))

    endpoint = result.endpoint
    assert f"ep-{endpoint.id[:12]}" == endpoint.name
    assert [endpoint.name, "db"] == list(endpoint.dns_names)
    assert f"02:42:{endpoint.id[:2]}:{endpoint.id[2:4]}:{endpoint.id[4:6]}:{endpoint.id[6:8]}" == endpoint.mac_address


async def test_what_was_asked_for_is_what_the_endpoint_has(world, face, make_item):
    await face.network(subnets=[Subnet(subnet="10.1.0.0/24")], enable_ipv6=True)

    (result,) = await face.attach(
        make_item(
            name="web",
            addresses=["10.1.0.77"],
            mac_address="02-00-00-00-00-77",
            interface_name="net7",
            gateway_priority=-3,
            labels={"a": "b"},
        )
    )

    endpoint = result.endpoint
    assert ["10.1.0.77/24", "fd00:0:0:1::2/64"] == list(endpoint.addresses)
    assert ["10.1.0.1", "fd00:0:0:1::1"] == list(result.gateways)
    assert "02:00:00:00:00:77" == endpoint.mac_address
    assert "net7" == endpoint.interface_name
    assert -3 == endpoint.gateway_priority
    assert 2 == len(endpoint.lease_epochs)


async def test_a_mac_address_or_interface_name_in_use_is_refused(face, make_item):
    await face.network()
    await face.attach(make_item(name="a", mac_address="02:00:00:00:00:01", interface_name="net0"))

    mac, name = await face.attach(
        make_item(name="b", container="c2", mac_address="02:00:00:00:00:01"), make_item(name="c", interface_name="net0")
    )

    assert ("MAC_IN_USE", "INTERFACE_NAME_IN_USE") == (mac.status.reason, name.status.reason)


async def test_a_full_subnet_is_followed_by_the_next_one(world, face, make_item):
    await face.network(subnets=[Subnet(subnet="10.1.0.0/30"), Subnet(subnet="10.2.0.0/30")])

    results = await face.attach(*(make_item(name=f"e{n}", container=f"c{n}") for n in range(3)))

    assert ["10.1.0.2/30", "10.2.0.2/30"] == [r.endpoint.addresses[0] for r in results[:2]]
    assert ["10.2.0.1"] == list(results[1].gateways)
    assert "POOL_EXHAUSTED" == results[2].status.reason
    assert 2 == len(world.ipam.endpoint_leases())


async def test_an_internal_network_has_no_gateway_for_its_endpoints(face, make_item):
    await face.network(internal=True)

    (result,) = await face.attach(make_item(name="web"))

    assert [] == list(result.gateways)


async def test_a_driver_without_addresses_leases_none(world, face, make_item):
    await face.network("thehost", driver="host")

    (result,) = await face.attach(make_item("thehost", "web"))

    assert 0 == result.status.code, result.status
    assert ("", []) == (result.endpoint.mac_address, list(result.endpoint.addresses))
    assert {} == world.ipam.pools


async def test_a_network_bound_to_a_host_is_for_that_host(face, make_item):
    await face.network(host="h2")

    here, there = await face.attach(make_item(name="a", host="h1"), make_item(name="b", container="c2", host="h2"))

    assert ("OTHER_HOST", "") == (here.status.reason, there.status.reason)


async def test_an_overlay_needs_a_tunnel_address_and_a_driver_its_host(world, face, make_item):
    await world.add_host(face, "h3", 3, vtep="")
    await world.add_host(face, "h4", 4, drivers=[])
    await face.network("net", driver="overlay")

    novtep, nodriver = await face.attach(make_item("net", "a", "c1", "h3"), make_item("net", "b", "c2", "h4"))

    assert ("NO_VTEP", "DRIVER_NOT_ON_HOST") == (novtep.status.reason, nodriver.status.reason)


async def test_two_items_may_share_a_sandbox_that_is_made_for_them(face, make_item):
    await face.network("one")
    await face.network("two")

    a, b = await face.attach(make_item("one", "a"), make_item("two", "b"))

    assert a.sandbox == b.sandbox
    assert {a.endpoint.id, b.endpoint.id} == set(
        (await face.sandboxes.GetSandbox(sandbox_pb2.GetSandboxRequest(sandbox="c1"))).endpoint_ids
    )


# Detach


async def test_who_was_told_of_an_attach_reads_it_at_once(face, make_item):
    await face.network()

    (result,) = await face.attach(make_item("front", "e1"))
    endpoint = (await face.endpoints.ListEndpoints(endpoint_pb2.ListEndpointsRequest())).endpoints[0]
    sandbox = (await face.sandboxes.ListSandboxes(sandbox_pb2.ListSandboxesRequest())).sandboxes[0]

    assert common_endpoint_pb2.ENDPOINT_STATE_JOINED == endpoint.state
    assert result.endpoint.interface_name == endpoint.interface_name != ""
    assert result.sandbox.netns_path == sandbox.netns_path != ""


async def test_what_is_not_there_is_detached_already(face):
    (result,) = await face.detach("nope")

    assert 0 == result.code


async def test_a_name_that_several_networks_have_needs_its_network(face, make_item):
    await face.network("one")
    await face.network("two")
    await face.attach(make_item("one", "web"), make_item("two", "web"))

    (vague,) = await face.detach("web")
    (exact,) = await face.detach("web", network="two")

    assert ("AMBIGUOUS", 0) == (vague.reason, exact.code)
    assert 1 == len(face.state.endpoints)


async def test_a_sandbox_goes_with_its_last_endpoint_only(face, make_item):
    await face.network("one")
    await face.network("two")
    await face.attach(make_item("one", "a"), make_item("two", "b"))

    await face.detach("a", delete_sandbox=True)
    assert 1 == len(face.state.sandboxes)
    await face.detach("b", delete_sandbox=True)
    assert {} == face.state.sandboxes


async def test_a_repeated_detach_takes_nothing_away_that_came_later(face, make_item):
    await face.network()
    await face.attach(make_item(name="web"))
    await face.detach("web", request_id="r1")
    await face.attach(make_item(name="web"))

    (again,) = await face.detach("web", request_id="r1")

    assert 0 == again.code
    assert 1 == len(face.state.endpoints)


# Single verbs


async def test_the_single_verbs_lead_an_endpoint_in_and_out(world, face):
    await face.network()
    spec = endpoint_pb2.EndpointSpec(network="front", name="web")
    create = endpoint_pb2.CreateEndpointRequest(request_id="r1", endpoint=spec)
    created = (await face.endpoints.CreateEndpoint(create)).endpoint
    assert common_endpoint_pb2.ENDPOINT_STATE_CREATED == created.state
    assert created == (await face.endpoints.CreateEndpoint(create)).endpoint
    assert 0 == world.agents["h1"].calls["Apply"]

    join = endpoint_pb2.JoinEndpointRequest(request_id="r2", endpoint="web", network="front", sandbox=ref())
    joined = await face.endpoints.JoinEndpoint(join)
    assert common_endpoint_pb2.ENDPOINT_STATE_JOINED == joined.endpoint.state
    assert created.addresses == joined.endpoint.addresses
    assert "/run/netns/c1" == joined.sandbox.netns_path
    assert joined.endpoint.id == (await face.endpoints.JoinEndpoint(join)).endpoint.id

    with pytest.raises(errors.FailedPrecondition, match="in sandbox"):
        await face.endpoints.JoinEndpoint(endpoint_pb2.JoinEndpointRequest(endpoint="web", sandbox=ref("c2")))
    with pytest.raises(errors.FailedPrecondition, match="force"):
        await face.endpoints.DeleteEndpoint(endpoint_pb2.DeleteEndpointRequest(endpoint="web"))

    leave = endpoint_pb2.LeaveEndpointRequest(request_id="r3", endpoint="web")
    left = (await face.endpoints.LeaveEndpoint(leave)).endpoint
    assert common_endpoint_pb2.ENDPOINT_STATE_CREATED == left.state
    assert ("", "", created.addresses) == (left.sandbox_id, left.host_id, left.addresses)
    assert left.id == (await face.endpoints.LeaveEndpoint(leave)).endpoint.id
    assert [] == world.agents["h1"].names("endpoint")
    with pytest.raises(errors.FailedPrecondition, match="no sandbox"):
        await face.endpoints.LeaveEndpoint(endpoint_pb2.LeaveEndpointRequest(endpoint="web"))

    delete = endpoint_pb2.DeleteEndpointRequest(request_id="r4", endpoint="web")
    await face.endpoints.DeleteEndpoint(delete)
    await face.endpoints.DeleteEndpoint(delete)
    assert [] == world.ipam.endpoint_leases()
    with pytest.raises(errors.NotFound):
        await face.endpoints.DeleteEndpoint(endpoint_pb2.DeleteEndpointRequest(endpoint="web"))


async def test_force_deletes_a_joined_endpoint(world, face, make_item):
    await face.network()
    await face.attach(make_item(name="web"))

    await face.endpoints.DeleteEndpoint(endpoint_pb2.DeleteEndpointRequest(endpoint="web", force=True))

    assert {} == face.state.endpoints
    assert [] == world.agents["h1"].names("endpoint")


async def test_sandboxes_are_made_listed_and_deleted(world, face, make_item):
    spec = endpoint_pb2.SandboxSpec(host="h1", container_id="c1", labels={"a": "b"})
    create = sandbox_pb2.CreateSandboxRequest(request_id="r1", sandbox=spec)
    made = (await face.sandboxes.CreateSandbox(create)).sandbox
    assert common_sandbox_pb2.SANDBOX_STATE_READY == made.state
    assert "/run/netns/c1" == made.netns_path
    assert made.id == (await face.sandboxes.CreateSandbox(create)).sandbox.id
    with pytest.raises(errors.AlreadyExists, match="c1"):
        await face.sandboxes.CreateSandbox(sandbox_pb2.CreateSandboxRequest(sandbox=spec))
    await face.settled()
    listed = await face.sandboxes.ListSandboxes(sandbox_pb2.ListSandboxesRequest(filters=["host=h1", "label=a"]))
    assert [made.id] == [sandbox.id for sandbox in listed.sandboxes]

    await face.network()
    await face.attach(make_item(name="web"))
    with pytest.raises(errors.FailedPrecondition, match="web"):
        await face.sandboxes.DeleteSandbox(sandbox_pb2.DeleteSandboxRequest(sandbox="c1"))
    delete = sandbox_pb2.DeleteSandboxRequest(request_id="r2", sandbox="c1", force=True)
    await face.sandboxes.DeleteSandbox(delete)
    await face.sandboxes.DeleteSandbox(delete)
    assert ({}, {}) == (face.state.sandboxes, face.state.endpoints)
    assert [] == world.agents["h1"].names("sandbox")


# Hosts


async def test_a_host_is_ready_while_it_reports_and_lost_after(world, face, monkeypatch):
    liveness = face.controller.liveness
    response = await face.hosts.ListHosts(host_pb2.ListHostsRequest(filters=["state=ready"]))
    assert ["h1", "h2"] == [host.name for host in response.hosts]

    later = liveness._monotonic() + 60
    monkeypatch.setattr(liveness, "_monotonic", lambda: later)
    face.controller.hosts.report(f"{2:032x}", [], full=False)

    response = await face.hosts.ListHosts(host_pb2.ListHostsRequest(filters=["state=lost"]))
    assert ["h1"] == [host.name for host in response.hosts]


async def test_heartbeats_reach_the_other_controller_and_take_no_revision(world, face):
    other = await world.start_controller()
    before = face.state.revision
    await face.hosts.ReportHost(host_pb2.ReportHostRequest(host_id=f"{1:032x}"))
    await face.controller.liveness.exchange()

    await other.controller.liveness.exchange()

    host = (await other.hosts.GetHost(host_pb2.GetHostRequest(host="h1"))).host
    assert common_host_pb2.HOST_STATE_READY == host.state
    assert host.heartbeat_time.seconds > 0
    assert before == face.state.revision


async def test_the_first_report_is_asked_in_full(face):
    request = host_pb2.ReportHostRequest(host_id=f"{1:032x}")
    assert (await face.hosts.ReportHost(request)).want_full
    request.full = True
    assert not (await face.hosts.ReportHost(request)).want_full
    with pytest.raises(errors.NotFound):
        await face.hosts.ReportHost(host_pb2.ReportHostRequest(host_id="f" * 32))


async def test_what_a_host_reports_of_an_endpoint_is_shown(face, make_item):
    await face.network()
    (result,) = await face.attach(make_item(name="web"))
    await face.settled()

    async def report(error):
        one = agent_pb2.ObjectStatus(
            object=agent_pb2.ObjectRef(kind=agent_pb2.OBJECT_KIND_ENDPOINT, id=result.endpoint.id),
            revision=result.endpoint.revision,
            status=status.to_item_status(error),
            was_applied=True,
        )
        await face.hosts.ReportHost(host_pb2.ReportHostRequest(host_id=f"{1:032x}", statuses=[one]))
        await face.settled()
        request = endpoint_pb2.GetEndpointRequest(endpoint="web")
        return (await face.endpoints.GetEndpoint(request)).endpoint

    broken = await report(errors.KernelError("ip link add", "x", 16))
    mended = await report(None)

    assert "EBUSY" in broken.status_message
    assert common_endpoint_pb2.ENDPOINT_STATE_JOINED == broken.state
    assert ("", "eth0") == (mended.status_message, mended.interface_name)


async def test_registering_again_changes_nothing_unless_the_host_has(world, face):
    before = face.state.revision
    host = (await face.hosts.GetHost(host_pb2.GetHostRequest(host="h1"))).host

    await face.hosts.RegisterHost(host_pb2.RegisterHostRequest(host=host))
    assert before == face.state.revision
    host.labels["rack"] = "7"
    registered = await face.hosts.RegisterHost(host_pb2.RegisterHostRequest(host=host))

    assert before + 1 == face.state.revision == registered.host.revision
    assert registered.report_interval_seconds > 0


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"id": "x"}, errors.InvalidArgument),
        ({"name": "a b"}, errors.InvalidArgument),
        ({"agent_target": ""}, errors.InvalidArgument),
        ({"agent_target": "http://x"}, errors.InvalidArgument),
        ({"vtep_address": "192.0.2.1/24"}, errors.InvalidArgument),
        ({"name": "h1"}, errors.FailedPrecondition),
    ],
)
async def test_a_host_that_cannot_be_is_refused(face, fields, error):
    host = common_host_pb2.Host(**{"id": "9" * 32, "name": "h9", "agent_target": "unix:/x", **fields})

    with pytest.raises(error):
        await face.hosts.RegisterHost(host_pb2.RegisterHostRequest(host=host))


async def test_a_host_in_use_is_forgotten_by_force_with_all_that_is_on_it(world, face, make_item):
    await face.network()
    await face.network("bound", host="h1")
    await face.attach(make_item(name="a"), make_item("bound", "b"), make_item(name="c", container="c2", host="h2"))

    with pytest.raises(errors.FailedPrecondition, match="ready"):
        await face.hosts.DeleteHost(host_pb2.DeleteHostRequest(host="h1"))
    request = host_pb2.DeleteHostRequest(request_id="r1", host="h1", force=True)
    await face.hosts.DeleteHost(request)
    await face.hosts.DeleteHost(request)

    assert ["c"] == [record.value.name for record in face.state.endpoints.values()]
    assert ["front"] == [record.value.name for record in face.state.networks.values()]
    assert ["h2"] == [record.value.name for record in face.state.hosts.values()]
    assert 1 == len(world.ipam.endpoint_leases())


# Events


async def test_events_come_in_order_and_resume_at_a_revision(face, make_item):
    start = face.state.revision
    await face.network()
    await face.attach(make_item(name="web"))
    await face.settled()
    await face.detach("web", delete_sandbox=True)
    end = face.state.revision

    events = []
    stream = face.event_streams.Watch(event_pb2.WatchRequest(after_revision=start))
    while not events or events[-1].revision < end:
        events += (await stream.read()).events
    stream.cancel()
    middle = events[len(events) // 2].revision
    stream = face.event_streams.Watch(event_pb2.WatchRequest(after_revision=middle))
    resumed = list((await stream.read()).events)
    stream.cancel()

    revisions = [event.revision for event in events]
    assert sorted(revisions) == revisions
    assert [event for event in events if event.revision > middle] == resumed
    endpoint = [event for event in events if event.WhichOneof("object") == "endpoint"]
    actions = [event_pb2.EventAction.Name(event.action).removeprefix("EVENT_ACTION_") for event in endpoint]
    assert ["CREATED", "UPDATED", "UPDATED", "DELETED"] == actions
    assert "web" == endpoint[-1].endpoint.name


async def test_a_watch_from_now_says_where_it_begins_and_sees_what_follows(face, make_item):
    await face.network()
    stream = face.event_streams.Watch(event_pb2.WatchRequest(filters=["type=endpoint", "network=front", "host=h1"]))
    first = await stream.read()
    assert face.state.revision == first.revision

    await face.network("other")
    await face.attach(make_item("other", "no"), make_item(name="web", container="c2"))
    message = await stream.read()
    stream.cancel()

    assert ["web"] == [event.endpoint.name for event in message.events]


async def test_a_watch_from_before_the_log_is_out_of_range(world):
    store = RedisStore(world.store_url, prefix=world.cluster, log_writes=16)
    face = await world.start_controller(store)
    host = await world.add_host(face, "h1", 1)
    for n in range(250):
        host.labels["n"] = str(n)
        await face.hosts.RegisterHost(host_pb2.RegisterHostRequest(host=host))
    face.controller.replica._recent.clear()
    stream = face.event_streams.Watch(event_pb2.WatchRequest(after_revision=1))

    with pytest.raises(Exception, match="list again") as caught:
        await stream.read()

    assert "OUT_OF_RANGE" in str(caught.value)


async def test_a_silent_watch_sends_bookmarks(face, monkeypatch):
    service = EventService(face.controller.replica, face.controller.liveness, bookmark_s=0.01)
    stream = service.Watch(event_pb2.WatchRequest(), None)

    first, second = await anext(stream), await anext(stream)
    await stream.aclose()

    assert first.revision == second.revision
    assert [] == list(second.events)


# The store goes away


async def test_without_the_store_calls_are_unavailable_and_come_back_with_it(world, killable_server, make_item):
    await killable_server.ready()
    world.store_url = killable_server.url
    face = await world.start_controller()
    await world.add_host(face, "h1", 1)
    await face.network()
    await face.attach(make_item(name="before"))
    await face.settled()

    killable_server.kill()
    async with asyncio.timeout(5):
        with pytest.raises(errors.Unavailable, match="store"):
            await face.attach(make_item(name="during", container="c2"), request_id="r1")
    got = await face.networks.GetNetwork(network_pb2.GetNetworkRequest(network="front"))
    assert 1 == got.endpoint_count
    killable_server.start()
    await killable_server.ready()
    (result,) = await face.attach(make_item(name="during", container="c2"), request_id="r1")

    assert 0 == result.status.code, result.status
    assert 2 == len(world.ipam.endpoint_leases())
    other = await world.start_controller()
    assert {"before", "during"} == {record.value.name for record in other.state.endpoints.values()}
