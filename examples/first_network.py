"""What libnetwork's README does first, with netweft: a network, an endpoint, a sandbox, and the join of the two.

    make up && .venv/bin/python examples/first_network.py

To run it again: `netweft sandbox rm --force container1`, which takes the endpoint along; the network is found again.
"""

from __future__ import annotations

import contextlib
import sys

import netweft_client
from netweft_client import errors

NETWORK = "network1"
ENDPOINT = "Endpoint1"


def main() -> int:
    """Join Endpoint1 of network1 to the sandbox container1, and say so."""
    # The client finds the controller that `make up` started; NETWEFT_TARGET names another.
    with netweft_client.Client(retry_for_s=2) as controller:
        # A network of the driver bridge. IPAM chooses a subnet that nobody uses.
        with contextlib.suppress(errors.AlreadyExists):
            controller.create_network(NETWORK, driver="bridge")

        # An endpoint leases its addresses and MAC at once; it is in no container yet.
        with contextlib.suppress(errors.AlreadyExists):
            controller.create_endpoint(netweft_client.EndpointSpec(network=NETWORK, name=ENDPOINT))

        # A sandbox is a container's network namespace with its hosts and resolv.conf. This one the agent makes;
        # NamespacePath or NamespacePid say where an existing one is.
        sandbox = netweft_client.SandboxSpec(container_id="container1", hostname="test", domainname="docker.io")

        # The join returns when the kernel has the interface, its addresses and its routes.
        joined = controller.join_endpoint(ENDPOINT, sandbox, network=NETWORK)

        print(
            f"Joined endpoint {joined.endpoint.name} (MAC {joined.endpoint.mac_address}) "
            f"to sandbox {joined.sandbox.container_id} (namespace {joined.sandbox.netns_path})"
        )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except errors.NetweftError as error:
        sys.exit(f"first_network: {error}")
