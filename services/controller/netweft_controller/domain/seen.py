"""What hosts see of an endpoint: which changes of its record concern them."""

from __future__ import annotations

from netweft_controller.domain.objects import Endpoint, PublishedPort


def differs(before: Endpoint | None, after: Endpoint | None) -> bool:
    """Return whether hosts must be told of a change: not of a confirmation that came from the host itself."""
    if not (before is not None and before.is_active) and not (after is not None and after.is_active):
        # It was gone for hosts when it began to leave.
        return False
    if before is None or after is None:
        return True
    return _seen(before) != _seen(after) or not _same_bindings(before.ports, after.ports)


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
        endpoint.link_local,
        endpoint.routes,
        endpoint.sysctls,
        endpoint.bandwidth,
    )


def _same_bindings(before: tuple[PublishedPort, ...], after: tuple[PublishedPort, ...]) -> bool:
    """Compare what was asked for; which port the host has assigned comes from itself."""
    return before is after or (
        len(before) == len(after)
        and all(one is other or one.binding == other.binding for one, other in zip(before, after, strict=True))
    )
