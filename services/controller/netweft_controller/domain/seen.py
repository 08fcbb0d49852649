"""What hosts see of an endpoint: which changes of its record concern them."""

from __future__ import annotations

from netweft_controller.domain.objects import Endpoint


def differs(before: Endpoint | None, after: Endpoint | None) -> bool:
    """Return whether hosts must be told of a change: not of a confirmation that came from the host itself."""
    if not (before is not None and before.is_active) and not (after is not None and after.is_active):
        # It was gone for hosts when it began to leave.
        return False
    if before is None or after is None:
        return True
    return _seen(before) != _seen(after)


def _seen(endpoint: Endpoint) -> tuple[object, ...]:
    return (
        endpoint.is_active,
        endpoint.host_id,
        endpoint.sandbox_id,
        endpoint.name,
        endpoint.mac_address,
        endpoint.leases,
        endpoint.dns_names,
        endpoint.gateway_priority,
        endpoint.options,
        tuple(port.binding for port in endpoint.ports),
        endpoint.link_local,
        endpoint.routes,
        endpoint.sysctls,
        endpoint.bandwidth,
    )
