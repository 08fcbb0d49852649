"""Garbage collection where much is kept, in processes of their own: its settings are the whole interpreter's."""

from __future__ import annotations

import json
import subprocess
import sys

_START = """
import gc, json, weakref
from netweft_common.collecting import Collector

class Node:
    pass

def keep(count):
    for _ in range(count // 10_000):
        kept.extend([] for _ in range(10_000))
        collector.step()

def looks():
    return gc.get_stats()[2]["collections"]

kept = []
collector = Collector()
"""


def told(script):
    ran = subprocess.run([sys.executable, "-c", _START + script], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


def test_what_is_kept_is_looked_at_as_a_whole_only_when_it_has_doubled():
    whole, frozen = told("""
keep(300_000)
before = looks()
keep(1_500_000)
print(json.dumps([looks() - before, gc.get_freeze_count()]))
""")

    assert 1 <= whole <= 3
    assert frozen > 1_500_000


def test_a_circle_that_was_frozen_and_dropped_goes_when_twice_as_much_is_kept():
    first, last = told("""
circle = Node()
circle.self = circle
seen = weakref.ref(circle)
keep(400_000)
del circle
gc.collect()
first = seen() is not None
keep(1_200_000)
print(json.dumps([first, seen() is not None]))
""")

    assert first
    assert not last


def test_circles_that_come_and_go_take_no_memory():
    (left,) = told("""
counts = []
class Counted:
    def __del__(self):
        counts.append(1)
for _ in range(400_000):
    one = Counted()
    one.self = one
    if _ % 10_000 == 0:
        collector.step()
print(json.dumps([400_000 - len(counts)]))
""")

    assert left < 120_000
