"""Announcements that wait: in order, of each place one, bounded; and the thread that tells them."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netweft_agent.domain.announcement import Announcement
from netweft_agent.kernel import announcer, gratuitous
from netweft_agent.kernel.announcer import Announcer, Turns

from tests.support import frames

MAC = "02:42:0a:01:00:05"


def one(name="eth0", *addresses, count=3, interval_ms=1000, ns="sandbox/s"):
    return Announcement(ns=ns, link=name, addresses=addresses or ("10.0.0.2",), count=count, interval_ms=interval_ms)


def tell_all(turns, now_s):
    """Take and tell what is due, and return it."""
    found = []
    while (taken := turns.take(now_s)) is not None:
        found.append(taken)
        turns.told(now_s)
    return found


# --- frames ----------------------------------------------------------------------------------------------------------


def test_of_an_ipv4_address_an_announcement_is_broadcast():
    expected = frames.ethernet(MAC, frames.ARP, frames.arp(1, MAC, "10.1.0.5", "10.1.0.5"))

    assert [expected] == gratuitous.frames(frames.mac(MAC), ("10.1.0.5",))


@given(mac=st.binary(min_size=6, max_size=6), address=st.ip_addresses(v=6))
def test_of_an_ipv6_address_an_advertisement_goes_to_all_nodes(mac, address):
    text = mac.hex(":")
    advertisement = frames.advertisement(str(address), str(address), text)
    expected = frames.ethernet(text, frames.IPV6, advertisement, destination="33:33:00:00:00:01")

    assert [expected] == gratuitous.frames(mac, (str(address),))


# --- turns -----------------------------------------------------------------------------------------------------------


def test_they_are_taken_when_they_are_due_in_that_order():
    turns = Turns()
    for due_s, name in ((3.0, "c"), (1.0, "a"), (2.0, "b")):
        turns.add(one(name, count=1), due_s)

    assert [] == tell_all(turns, 0.5)
    assert ["a", "b"] == [taken.link for taken in tell_all(turns, 2.0)]
    assert 3.0 == turns.due_s()
    assert ["c"] == [taken.link for taken in tell_all(turns, 9.0)]
    assert (None, 0) == (turns.due_s(), len(turns))


def test_each_is_told_as_often_as_it_says_at_its_interval():
    turns = Turns()
    turns.add(one(count=3, interval_ms=250), 1.0)

    told = [len(tell_all(turns, now_s)) for now_s in (1.0, 1.2, 1.25, 1.5, 9.0)]

    assert [1, 0, 1, 1, 0] == told


def test_of_a_place_only_the_last_one_counts():
    turns = Turns()
    turns.add(one("eth0", "10.0.0.2"), 1.0)
    turns.add(one("eth0", "10.0.0.3", count=1), 2.0)

    assert [] == tell_all(turns, 1.0)
    assert [("10.0.0.3",)] == [taken.addresses for taken in tell_all(turns, 9.0)]
    assert 0 == len(turns)


def test_one_that_is_never_told_takes_the_place_of_what_waits():
    turns = Turns()
    turns.add(one(), 1.0)

    assert turns.add(one(count=0), 1.0)
    assert [] == tell_all(turns, 9.0)


def test_what_comes_while_too_many_wait_is_left_out_but_for_places_that_wait_already():
    turns = Turns(limit=2)
    taken = [turns.add(one(name), 1.0) for name in ("a", "b", "c")]

    again = turns.add(one("a", "10.0.0.9"), 1.0)

    assert ([True, True, False], True) == (taken, again)
    assert {("b", "10.0.0.2"), ("a", "10.0.0.9")} == {(it.link, *it.addresses) for it in tell_all(turns, 1.0)}


def test_what_is_dropped_is_not_told_also_while_it_is_being_told():
    turns = Turns()
    turns.add(one("a"), 1.0)
    turns.add(one("b"), 1.0)

    turns.drop(one("b").place)
    taken = turns.take(1.0)
    turns.drop(one("a").place)
    turns.told(1.0)

    assert "a" == taken.link
    assert [] == tell_all(turns, 99.0)


def test_what_comes_while_the_older_one_is_being_told_is_not_lost():
    turns = Turns()
    turns.add(one("a", "10.0.0.2"), 1.0)

    turns.take(1.0)
    turns.add(one("a", "10.0.0.3", count=1), 1.5)
    turns.told(1.0, lost=True)

    assert [("10.0.0.3",)] == [taken.addresses for taken in tell_all(turns, 99.0)]


def test_one_that_nobody_can_tell_any_more_is_not_tried_again():
    turns = Turns()
    turns.add(one(), 1.0)

    turns.take(1.0)
    turns.told(1.0, lost=True)

    assert (None, 0) == (turns.due_s(), len(turns))


def test_an_interface_that_is_announced_again_and_again_takes_no_more_room():
    turns = Turns(limit=4)
    for number in range(1000):
        turns.add(one(), 1.0 + number)

    assert 1 == len(turns)
    assert len(turns._heap) <= 8


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.sampled_from("abcd"), st.integers(0, 3)),
            st.tuples(st.just("drop"), st.sampled_from("abcd"), st.just(0)),
            st.tuples(st.just("pass"), st.just(""), st.integers(1, 30)),
        )
    )
)
def test_they_do_as_a_plain_list_would(acts):
    turns, model, now_s = Turns(limit=3), {}, 0.0
    for act, name, number in acts:
        if act == "add":
            model.pop(name, None)
            taken = turns.add(one(name, count=number), now_s + 1)
            fits = number == 0 or len(model) < 3
            if number and fits:
                model[name] = [now_s + 1, number]
            assert fits == taken
        elif act == "drop":
            turns.drop(one(name).place)
            model.pop(name, None)
        else:
            now_s += number / 10
            expected = []
            while due := sorted((it[0], name) for name, it in model.items() if it[0] <= now_s):
                name_due = due[0][1]
                expected.append((name_due, model[name_due][1]))
                model[name_due] = [now_s + 1, model[name_due][1] - 1]
                if not model[name_due][1]:
                    del model[name_due]
            assert sorted(expected) == sorted((it.link, it.count) for it in tell_all(turns, now_s))
        assert len(model) == len(turns)


# --- the thread ------------------------------------------------------------------------------------------------------


@pytest.fixture
def heard(monkeypatch):
    """Record what is told and by which thread, instead of telling it."""
    record = SimpleNamespace(told=[], threads=set(), more=threading.Semaphore(0), lost=set())

    def tell(namespaces, announcement, dispose):
        record.told.append((announcement.link, announcement.count))
        record.threads.add(threading.current_thread().name)
        record.more.release()
        return announcement.link not in record.lost

    monkeypatch.setattr(gratuitous, "tell", tell)
    return record


@pytest.fixture
def telling(heard):
    made = Announcer(None, soon_s=0.0)
    yield made
    made.close()


def wait_for(heard, count):
    for _ in range(count):
        assert heard.more.acquire(timeout=30)


def test_what_is_put_is_told_by_the_announcers_thread(telling, heard):
    telling.put([one("a", count=2, interval_ms=1), one("b", count=1)])
    wait_for(heard, 3)

    assert {("a", 2), ("a", 1), ("b", 1)} == set(heard.told)
    assert {"netweft-announcer"} == heard.threads


def test_what_is_told_now_is_told_by_the_caller_and_the_rest_by_the_thread(telling, heard):
    telling.tell([one("a", count=3, interval_ms=1)])
    mine = set(heard.threads)
    wait_for(heard, 3)

    assert {threading.current_thread().name} == mine
    assert [("a", 3), ("a", 2), ("a", 1)] == heard.told


def test_what_cannot_be_told_is_let_alone_and_the_others_go_on(telling, heard):
    heard.lost.add("gone")

    telling.put([one("gone", count=3, interval_ms=1), one("a", count=3, interval_ms=1)])
    wait_for(heard, 4)

    assert [("gone", 3)] == [it for it in heard.told if it[0] == "gone"]


def test_what_too_many_wait_for_is_counted(heard):
    telling = Announcer(None, soon_s=3600.0, limit=2)
    telling.put([one(str(number)) for number in range(5)])
    telling.close()

    assert 3 == telling.left_out
    assert [] == heard.told


def test_closing_leaves_out_what_waits_and_ends_the_threads(heard):
    telling = Announcer(None, soon_s=3600.0)
    telling.put([one()])
    threads = list(telling._threads)

    telling.close()
    telling.close()
    telling.put([one()])

    assert 2 == len(threads)
    assert not any(thread.is_alive() for thread in threads)
    assert [] == heard.told


def test_without_announcements_there_is_no_thread():
    telling = Announcer(None)
    telling.close()

    assert [] == telling._threads


def test_it_waits_for_quiet_but_not_for_ever(monkeypatch):
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(announcer, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    telling = Announcer(None, soon_s=0.1)
    monkeypatch.setattr(telling, "_start", lambda: None)
    begins = []

    for number in range(300):
        telling.put([one(str(number))])
        begins.append(telling._work_s())
        clock.now_s += 0.05

    # A tenth of a second after the last one put, until the first has waited for ten.
    assert pytest.approx([100.0 + number * 0.05 + 0.1 for number in range(190)]) == begins[:190]
    assert pytest.approx([110.1] * 90) == begins[210:]


def test_it_works_a_tenth_of_its_time_in_short_pieces(monkeypatch):
    clock = SimpleNamespace(now_s=100.0)
    work_s, rests = [], []
    monkeypatch.setattr(announcer, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    telling = Announcer(None, soon_s=0.0)

    def tell(namespaces, announcement, dispose):
        clock.now_s += 0.0004
        work_s.append(clock.now_s)
        return True

    def rest(seconds):
        rests.append((len(work_s), seconds))
        clock.now_s += seconds
        if len(work_s) == 10:
            telling._closed = True

    monkeypatch.setattr(gratuitous, "tell", tell)
    monkeypatch.setattr(telling, "_rest", rest)
    monkeypatch.setattr(telling, "_start", lambda: None)
    telling.put([one(str(number), count=1) for number in range(10)])

    telling._run()

    # Three go in a millisecond.
    assert [3, 6, 9, 10] == [count for count, _ in rests]
    assert [pytest.approx(seconds) for seconds in (0.0108, 0.0108, 0.0108, 0.0036)] == [it for _, it in rests]
