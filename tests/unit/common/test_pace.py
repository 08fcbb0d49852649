"""How long hosts are let be silent."""

from __future__ import annotations

import pytest
from netweft_common.pace import HEARD_S, Pace


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def hear(pace: Pace, hosts: int) -> list[int]:
    return [pace.silent_ms(f"h{number}") for number in range(hosts)]


@pytest.mark.parametrize(
    ("hosts", "silent_ms"), [(1, 0), (200, 0), (201, 2010), (500, 5000), (1000, 10_000), (5000, 10_000)]
)
def test_the_more_hosts_there_are_the_longer_each_may_be_silent(hosts, silent_ms):
    assert silent_ms == hear(Pace(100, monotonic=Clock()), hosts)[-1]


def test_a_host_that_speaks_twice_is_one_host():
    pace = Pace(100, monotonic=Clock())

    assert {0} == {pace.silent_ms("h") for _ in range(1000)}


def test_hosts_are_remembered_over_the_next_count_and_forgotten_after_that():
    clock = Clock()
    pace = Pace(100, monotonic=clock)
    hear(pace, 500)
    clock.now_s += HEARD_S
    next_time = pace.silent_ms("h0")
    clock.now_s += HEARD_S
    after = pace.silent_ms("h0")

    assert (5000, 0) == (next_time, after)


def test_after_a_long_rest_no_host_counts():
    clock = Clock()
    pace = Pace(100, monotonic=clock)
    hear(pace, 500)
    clock.now_s += 2 * HEARD_S

    assert 0 == pace.silent_ms("h0")


@pytest.mark.parametrize(("most_s", "silent_ms"), [(30.0, 10_000), (4.0, 4000), (1.0, 0)])
def test_no_host_is_silent_for_longer_than_a_failover_can_wait(most_s, silent_ms):
    assert silent_ms == hear(Pace(100, most_s=most_s, monotonic=Clock()), 5000)[-1]


def test_without_a_limit_hosts_speak_as_they_like():
    assert {0} == set(hear(Pace(0, monotonic=Clock()), 1000))
