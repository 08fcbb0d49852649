from __future__ import annotations

import netweft_client
import pytest
from netweft_cli import ipamflags
from netweft_common import errors


def test_no_flag_leaves_everything_to_ipam():
    assert ipamflags.subnets([], [], [], {}) == []


def test_each_flag_goes_to_the_subnet_that_contains_it():
    found = ipamflags.subnets(
        ["10.1.0.0/16", "2001:db8::/64", "10.2.0.0/16"],
        ["10.2.0.1", "2001:db8::1"],
        ["10.1.128.0/17"],
        {"printer": "10.1.0.9", "scanner": "10.1.0.10"},
    )

    assert found == [
        netweft_client.SubnetSpec(
            subnet="10.1.0.0/16",
            ip_range="10.1.128.0/17",
            aux_addresses={"printer": "10.1.0.9", "scanner": "10.1.0.10"},
        ),
        netweft_client.SubnetSpec(subnet="2001:db8::/64", gateway="2001:db8::1"),
        netweft_client.SubnetSpec(subnet="10.2.0.0/16", gateway="10.2.0.1"),
    ]


@pytest.mark.parametrize(
    ("subnet", "gateway", "ip_range", "aux", "flag"),
    [
        (["10.0.0.1/16"], [], [], {}, "--subnet"),
        (["x"], [], [], {}, "--subnet"),
        ([], ["10.0.0.1"], [], {}, "--gateway"),
        (["10.0.0.0/16"], ["10.1.0.1"], [], {}, "--gateway"),
        (["10.0.0.0/16"], ["x"], [], {}, "--gateway"),
        (["10.0.0.0/16"], ["10.0.0.1", "10.0.0.2"], [], {}, "--gateway"),
        (["10.0.0.0/16"], [], ["10.0.0.0/8"], {}, "--ip-range"),
        (["10.0.0.0/16"], [], [], {"a": "::1"}, "--aux-address"),
    ],
    ids=[
        "host bits", "no subnet", "gateway alone", "gateway outside", "no address", "two gateways", "range too wide",
        "other family",
    ],
)  # fmt: skip
def test_what_fits_no_subnet_is_refused_with_its_flag(subnet, gateway, ip_range, aux, flag):
    with pytest.raises(errors.InvalidArgument) as caught:
        ipamflags.subnets(subnet, gateway, ip_range, aux)

    assert flag == caught.value.field
