"""Values as plain data."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json

import netweft_client


def test_a_value_becomes_plain_data_for_json():
    event = netweft_client.LeaseEvent(
        id="1",
        type=netweft_client.LeaseEventType.LEASED,
        time=dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        address=ipaddress.ip_interface("10.0.0.2/16"),
        owner_key="e",
        host_id="",
        epoch=3,
    )

    found = netweft_client.plain({"events": (event,), "none": None, "share": 0.5, "yes": True})

    assert {
        "events": [
            {
                "id": "1",
                "type": "leased",
                "time": "2026-01-02T00:00:00+00:00",
                "address": "10.0.0.2/16",
                "owner_key": "e",
                "host_id": "",
                "epoch": 3,
            }
        ],
        "none": None,
        "share": 0.5,
        "yes": True,
    } == json.loads(json.dumps(found))


def test_a_spec_takes_addresses_as_text_and_as_values():
    first = netweft_client.SubnetSpec(subnet="10.0.0.0/24", gateway="10.0.0.1")
    second = netweft_client.SubnetSpec(
        subnet=ipaddress.ip_network("10.0.0.0/24"), gateway=ipaddress.ip_address("10.0.0.1")
    )

    assert netweft_client.plain(first) == netweft_client.plain(second)
