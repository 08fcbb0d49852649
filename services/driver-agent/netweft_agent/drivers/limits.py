"""Limits of an endpoint's traffic, on the host's end of its veth pair, where a privileged container cannot reach them.

What goes into the container leaves by that end, so a token bucket there holds it back. What comes out arrives by it,
and the kernel has no queue for what arrives: it is redirected through an `ifb` of the endpoint, which sends it into a
token bucket of its own and hands it back as having come by the veth. Both ways are queues, not policers, so TCP finds
its rate instead of losing bursts (docs/decisions/0015-bandwidth-limits.md has the figures).
"""

from __future__ import annotations

from netweft_common.errors import FailedPrecondition

from netweft_agent.domain import names
from netweft_agent.domain.objects import Bandwidth, Endpoint, Facts
from netweft_agent.domain.resources import Link, Ns, Redirect, Resource, TokenBucket

LEAST_DEFAULT_BURST = 64 << 10
"""In bytes: one segmentation-offloaded packet, which would be cut up otherwise."""

MOST_BURST = 1 << 31
MOST_LIMIT = (1 << 32) - 1
"""In bytes: the kernel's counters have 32 bits."""

_BURST_S = 0.1
_WAIT_S = 0.05
_DEFAULT_MTU = 1500
_FRAME_HEADERS = 18
"""Ethernet's header with a VLAN tag, in bytes."""

_NEEDED = {"ingress": ("tbf",), "egress": ("tbf", "ifb", "mirred")}


def render(endpoint: Endpoint, *, ns: Ns, link: str, mtu: int | None) -> list[Resource]:
    """Render the limits of an endpoint whose veth's host end is `link` in `ns`, none where there are none.

    Args:
        endpoint: With or without limits.
        ns: Namespace of the host end.
        link: Name of the host end.
        mtu: Of the pair, in bytes; None: the kernel's default.
    """
    wanted = endpoint.bandwidth
    if wanted is None:
        return []
    made: list[Resource] = []
    if wanted.ingress_rate:
        made.append(_bucket(ns, link, wanted.ingress_rate, wanted.ingress_burst, mtu))
    if wanted.egress_rate:
        shaper = names.shaper(endpoint.id)
        made += [
            Link(ns=ns, name=shaper, kind="ifb", ipv6=False),
            _bucket(ns, shaper, wanted.egress_rate, wanted.egress_burst, mtu),
            Redirect(ns=ns, link=link, to=shaper),
        ]
    return made


def refuse_lacking(endpoint: Endpoint, facts: Facts) -> None:
    """Raise FailedPrecondition when the endpoint has limits that the host's kernel cannot keep."""
    wanted = endpoint.bandwidth or Bandwidth()
    for way, rate in (("ingress", wanted.ingress_rate), ("egress", wanted.egress_rate)):
        lacking = [one for one in _NEEDED[way] if one not in facts.features]
        if rate and lacking:
            raise FailedPrecondition(
                "FEATURE_MISSING",
                f"endpoint {endpoint.name} asks for a limit of {way} bandwidth, for which the kernel of this host "
                f"lacks {' and '.join(lacking)}; load or build sch_tbf, ifb, sch_ingress, cls_u32 and act_mirred and "
                "start the agent again, or leave the limit out",
                features=", ".join(lacking),
                host_id=facts.host_id,
            )


def _bucket(ns: Ns, link: str, rate_bits: int, burst_bits: int, mtu: int | None) -> TokenBucket:
    rate = rate_bits // 8
    # A frame that is larger than the bucket would never pass.
    frame = (mtu or _DEFAULT_MTU) + _FRAME_HEADERS
    burst = max(burst_bits // 8, frame) if burst_bits else max(int(rate * _BURST_S), LEAST_DEFAULT_BURST)
    burst = min(burst, MOST_BURST)
    return TokenBucket(ns=ns, link=link, rate=rate, burst=burst, limit=min(burst + int(rate * _WAIT_S), MOST_LIMIT))
