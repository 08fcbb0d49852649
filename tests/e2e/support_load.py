"""A load of attaches and detaches that goes on whatever dies, and keeps account of what it was told."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Self, TypeVar

import netweft_client
from netweft_client import AttachItem, DetachItem, EndpointSpec, SandboxSpec
from netweft_common import errors

from tests.e2e import support

T = TypeVar("T")

GIVES_UP = 0.1
"""How often a caller does not ask again after a failure: nobody knows what has become of that."""
PATIENCE_S = 60.0
TRANSIENT = (errors.Unavailable, errors.Conflict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where containers may be attached; the network must be there."""

    network: str
    host: str


class Account:
    """What callers were told: endpoints that must be there, that may be there, and how often something was done."""

    def __init__(self) -> None:
        self.there: dict[str, netweft_client.Attached] = {}
        self.unknown: set[str] = set()
        self.attached = 0
        self.detached = 0
        self.retries = 0


class Load:
    """Workers at full speed; leaving the context ends them when each has finished what it was at.

    Args:
        cluster: Whom to ask.
        places: Where to attach.
        seed: Of all chance.
        workers: How many ask at once; one more makes and deletes networks.
        name: Begins the names of all that is made; another one for each load on the same cluster.
        patience_s: How long a worker insists on a call.
    """

    def __init__(
        self,
        cluster: support.Cluster,
        places: Sequence[Place],
        *,
        seed: int,
        workers: int = 3,
        name: str = "",
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.account = Account()
        self._name = name
        self._patience_s = patience_s
        self._cluster = cluster
        self._places = places
        self._seed = seed
        self._count = workers
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._pool = concurrent.futures.ThreadPoolExecutor(workers + 1)
        self._work: list[concurrent.futures.Future[None]] = []

    def __enter__(self) -> Self:
        jobs = [*(self._attach_and_detach,) * self._count, self._make_and_delete_networks]
        self._work = [self._pool.submit(self._run, job, number) for number, job in enumerate(jobs)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for one in self._work:
            one.result()

    @property
    def broken(self) -> bool:
        """Whether a worker has met what it must not; leaving the context raises that."""
        return any(one.done() for one in self._work)

    def _run(self, job: Callable[[netweft_client.Client, random.Random, str], None], number: int) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        with self._cluster.client(timeout_s=5.0) as client:
            count = 0
            while not self._stop.is_set():
                job(client, rng, f"{self._name}w{number}-{count}")
                count += 1

    def _attach_and_detach(self, client: netweft_client.Client, rng: random.Random, name: str) -> None:
        place = rng.choice(self._places)
        items = [
            AttachItem(
                endpoint=EndpointSpec(network=place.network, name=f"{name}-{number}"),
                sandbox=SandboxSpec(container_id=f"{name}-{number}", host=place.host),
            )
            for number in range(rng.choice((1, 1, 2, 5)))
        ]
        with self._lock:
            self.account.unknown |= {item.endpoint.name for item in items}
        gives_up = rng.random() < GIVES_UP
        found = self._insist(lambda: client.attach_endpoints(items, request_id=f"{name}/attach"), gives_up=gives_up)
        if found is None:
            return
        made = [one for one in found if isinstance(one, netweft_client.Attached)]
        with self._lock:
            self.account.attached += len(made)
            self.account.there |= {one.endpoint.name: one for one in made}
            self.account.unknown -= {one.endpoint.name for one in made}
        gone = [one for one in made if rng.random() < 0.7]
        if gone:
            self._detach(client, gone, f"{name}/detach", gives_up=rng.random() < GIVES_UP)

    def _detach(
        self, client: netweft_client.Client, gone: Sequence[netweft_client.Attached], key: str, *, gives_up: bool
    ) -> None:
        names = {one.endpoint.name for one in gone}
        with self._lock:
            for name in names:
                del self.account.there[name]
            self.account.unknown |= names
        items = [DetachItem(endpoint=one.endpoint.id, delete_sandbox=True) for one in gone]
        if self._insist(lambda: client.detach_endpoints(items, request_id=key), gives_up=gives_up) is not None:
            with self._lock:
                self.account.detached += len(names)
                self.account.unknown -= names

    def _make_and_delete_networks(self, client: netweft_client.Client, rng: random.Random, name: str) -> None:
        driver, host = rng.choice((("overlay", ""), ("bridge", self._places[0].host)))
        network = self._insist(
            lambda: [client.create_network(name, driver=driver, host=host, request_id=f"{name}/create")]
        )
        assert network is not None
        spec, box = EndpointSpec(network=name), SandboxSpec(container_id=name, host=self._places[0].host)
        attached = self._insist(
            lambda: client.attach_endpoints([AttachItem(endpoint=spec, sandbox=box)], request_id=f"{name}/attach")
        )
        assert attached is not None
        [one] = attached
        assert isinstance(one, netweft_client.Attached)
        item = DetachItem(endpoint=one.endpoint.id, delete_sandbox=True)
        self._insist(lambda: client.detach_endpoints([item], request_id=f"{name}/detach"))
        self._insist(lambda: [client.delete_network(network[0].id, request_id=f"{name}/delete")])

    def _insist(self, ask: Callable[[], list[T]], *, gives_up: bool = False) -> list[T] | None:
        """Ask until nothing of the answer is a failure that passes; None where the caller gave up.

        Raises:
            NetweftError: A failure that does not pass, or one that did not.
        """
        ends_at = time.monotonic() + self._patience_s
        while True:
            answer: list[T] = []
            try:
                answer = ask()
                failures: list[errors.NetweftError] = [one for one in answer if isinstance(one, errors.NetweftError)]
            except TRANSIENT as error:
                failures = [error]
            for failure in failures:
                if not isinstance(failure, TRANSIENT) or time.monotonic() > ends_at:
                    raise failure
            if not failures:
                return answer
            if gives_up:
                return None
            with self._lock:
                self.account.retries += 1
            # The next try is another moment of the outage.
            time.sleep(0.02)


def moments(names: Sequence[str], *, seed: int, kills: int) -> Iterator[tuple[float, str, float]]:
    """Yield when to kill whom, and how long it stays dead: seconds to wait, name, seconds to wait.

    Each one is killed as often as any other, once more at most.
    """
    rng = random.Random(seed)
    order: list[str] = []
    while len(order) < kills:
        order += rng.sample(names, len(names))
    for name in order[:kills]:
        yield rng.uniform(0.05, 1.0), name, rng.choice((0.0, rng.uniform(0.0, 0.6)))
