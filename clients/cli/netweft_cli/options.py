"""Options that many commands share, and what their texts mean.

`-o` is --output everywhere, as in kubectl and docker's newer commands; Docker's `-o` for driver options is `--opt`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from netweft_common import errors

from netweft_cli import layout, output

if TYPE_CHECKING:
    import netweft_client
    from netweft_common import tls

RETRY_FOR_S = 1.0
"""A person waits at a terminal: what does not answer within a second is reported."""

Output = Annotated[output.Format, typer.Option("--output", "-o", help="How the answer is written.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Ids only.")]
Target = Annotated[
    str,
    typer.Option(
        "--target",
        envvar="NETWEFT_TARGET",
        metavar="TARGET",
        help="Controller: unix:/path or host:port; by default the stack of the run directory.",
    ),
]
Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Longest wait for an answer.")]
RequestId = Annotated[
    str,
    typer.Option("--request-id", metavar="KEY", help="Idempotency key: the same key again returns the first answer."),
]
Filters = Annotated[
    list[str] | None,
    typer.Option("--filter", "-f", metavar="KEY=VALUE", help="Show what matches; all must hold."),
]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="KEY[=VALUE]", help="Label; may be repeated.")]
DriverOptions = Annotated[
    list[str] | None,
    typer.Option("--opt", metavar="KEY=VALUE", help="Driver option; may be repeated. No short form: -o is --output."),
]
Force = Annotated[bool, typer.Option("--force", help="Remove what hangs on it first.")]
RunDir = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        envvar="NETWEFT_RUN_DIR",
        metavar="PATH",
        help="Folder of the stack; by default /run/netweft, or the user's own.",
    ),
]
StateDir = Annotated[Path, typer.Option("--state-dir", help="The agent's state folder.")]
DEFAULT_STATE_DIR = Path("/var/lib/netweft")
Host = Annotated[str, typer.Option("--host", metavar="HOST", help="Host by name or id; needed if there are several.")]
Netns = Annotated[str, typer.Option("--netns", metavar="PATH", help="Use the network namespace at this path.")]
Pid = Annotated[int, typer.Option("--pid", metavar="PID", min=0, help="Use the network namespace of this process.")]
HostNetwork = Annotated[bool, typer.Option("--host-network", help="Use the host's own network namespace.")]
Hostname = Annotated[str, typer.Option("--hostname", metavar="NAME", help="Host name, written to the sandbox's hosts.")]
Domainname = Annotated[str, typer.Option("--domainname", metavar="NAME", help="Domain name of the host name.")]
Dns = Annotated[list[str] | None, typer.Option("--dns", metavar="ADDRESS", help="Name server; may be repeated.")]
DnsSearch = Annotated[list[str] | None, typer.Option("--dns-search", metavar="DOMAIN", help="Search domain.")]
DnsOption = Annotated[list[str] | None, typer.Option("--dns-option", metavar="OPTION", help="Resolver option.")]
AddHost = Annotated[
    list[str] | None,
    typer.Option("--add-host", metavar="NAME:ADDRESS", help="Line of hosts; ADDRESS may be host-gateway."),
]
Ip = Annotated[str, typer.Option("--ip", metavar="ADDRESS", help="IPv4 address; by default the next free one.")]
Ip6 = Annotated[str, typer.Option("--ip6", metavar="ADDRESS", help="IPv6 address; by default the next free one.")]
MacAddress = Annotated[str, typer.Option("--mac-address", metavar="MAC", help="MAC address.")]
Alias = Annotated[list[str] | None, typer.Option("--alias", metavar="NAME", help="Further name of the endpoint.")]
Interface = Annotated[str, typer.Option("--interface", metavar="NAME", help="Interface name; by default eth<N>.")]
GatewayPriority = Annotated[int, typer.Option("--gw-priority", help="The highest one gives the default route.")]

DEFAULT_TIMEOUT_S = 30.0


@contextlib.contextmanager
def connect(target: str, timeout_s: float, *, tls_files: tls.TlsFiles | None = None) -> Iterator[netweft_client.Client]:
    """Open a client; the import of grpc happens here, not at start."""
    import netweft_client  # noqa: PLC0415  # 200 ms that --help need not wait for

    # The client looks for the stack where `up` puts it.
    os.environ.setdefault("NETWEFT_RUN_DIR", str(layout.default_run_dir()))
    retry_for_s = min(RETRY_FOR_S, timeout_s)
    with netweft_client.Client(
        target or None, tls_files=tls_files, timeout_s=timeout_s, retry_for_s=retry_for_s
    ) as client:
        yield client


def mapping(texts: Sequence[str] | None, flag: str, *, bare: bool = False) -> dict[str, str]:
    """Return KEY=VALUE texts as a mapping.

    Args:
        texts: As the user wrote them.
        flag: For the error.
        bare: Whether KEY alone is KEY with an empty value, as Docker's labels are.

    Raises:
        InvalidArgument: A text has no key or no equals sign, or a key comes twice.
    """
    result: dict[str, str] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not key or not (equals or bare):
            raise errors.InvalidArgument("FLAG_MALFORMED", f"{flag} {text!r}: write it as KEY=VALUE", field=flag)
        if key in result:
            raise errors.InvalidArgument("FLAG_REPEATED", f"{flag}: key {key!r} is given twice", field=flag)
        result[key] = value
    return result


def sandbox_spec(
    container_id: str,
    *,
    host: str = "",
    netns: str = "",
    pid: int = 0,
    host_network: bool = False,
    hostname: str = "",
    domainname: str = "",
    dns: Sequence[str] | None = None,
    dns_search: Sequence[str] | None = None,
    dns_option: Sequence[str] | None = None,
    add_host: Sequence[str] | None = None,
    label: Sequence[str] | None = None,
) -> netweft_client.SandboxSpec:
    """Return the sandbox that flags describe.

    Raises:
        InvalidArgument: Two sources of the namespace, or a malformed flag.
    """
    import netweft_client  # noqa: PLC0415  # as in connect

    named = [flag for flag, given in (("--netns", netns), ("--pid", pid), ("--host-network", host_network)) if given]
    if len(named) > 1:
        raise errors.InvalidArgument(
            "FLAGS_EXCLUSIVE", f"{' and '.join(named)} each say where the namespace comes from; give one"
        )
    namespace: netweft_client.model.Namespace = netweft_client.NewNamespace()
    if netns:
        # The agent may run elsewhere in the tree: it takes absolute paths only.
        namespace = netweft_client.NamespacePath(path=str(Path(netns).absolute()))
    elif pid:
        namespace = netweft_client.NamespacePid(pid=pid)
    elif host_network:
        namespace = netweft_client.HostNamespace()
    has_dns = dns or dns_search or dns_option
    return netweft_client.SandboxSpec(
        container_id=container_id,
        host=host,
        namespace=namespace,
        hostname=hostname,
        domainname=domainname,
        dns=netweft_client.Dns(
            servers=tuple(dns or ()), search=tuple(dns_search or ()), options=tuple(dns_option or ())
        )
        if has_dns
        else None,
        extra_hosts=extra_hosts(add_host),
        labels=mapping(label, "--label", bare=True),
    )


def extra_hosts(texts: Sequence[str] | None) -> tuple[netweft_client.ExtraHost, ...]:
    """Return the lines of hosts that NAME:ADDRESS texts ask for.

    Raises:
        InvalidArgument: A text has no name, or no address.
    """
    return tuple(_extra_host(text) for text in texts or ())


def addresses(ip: str, ip6: str) -> tuple[str, ...]:
    """Return the addresses asked for.

    Raises:
        InvalidArgument: One is none, or of the other family.
    """
    for flag, text, version in (("--ip", ip, 4), ("--ip6", ip6, 6)):
        if not text:
            continue
        try:
            found = ipaddress.ip_address(text).version
        except ValueError as error:
            raise errors.InvalidArgument("ADDRESS_MALFORMED", f"{flag} {text!r} is no address", field=flag) from error
        if found != version:
            raise errors.InvalidArgument("ADDRESS_FAMILY", f"{flag} {text} is an IPv{found} address", field=flag)
    return tuple(text for text in (ip, ip6) if text)


def _extra_host(text: str) -> netweft_client.ExtraHost:
    import netweft_client  # noqa: PLC0415  # as in connect

    # Docker takes both separators, the equals sign being the one that reads well with IPv6.
    name, separator, address = text.partition("=" if "=" in text else ":")
    if not name or not separator or not address:
        raise errors.InvalidArgument(
            "FLAG_MALFORMED", f"--add-host {text!r}: write it as NAME:ADDRESS", field="--add-host"
        )
    return netweft_client.ExtraHost(name=name, address=address.strip("[]"))
