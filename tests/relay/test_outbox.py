"""The outbox in SQLite and in PostgreSQL: nothing twice, nothing lost, and two relays at one database."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from resprout.configs.errors import BadInput
from resprout.configs.schema import RelayConfig
from resprout.infra.relay.delivery import Delivery, Refused
from resprout.infra.relay.outbox import FAILED, HANDLED, WAITING, Outbox, Seen
from resprout.infra.relay.writer import Writer

Open = Callable[[], Outbox]


@pytest.fixture(params=["sqlite", "postgres"])
def reopen(request: pytest.FixtureRequest, home: Path) -> Iterator[Open]:
    """Opens the same database again, as another relay does."""
    config = RelayConfig()
    if request.param == "postgres":
        server, name = request.getfixturevalue("postgres"), f"relay{uuid.uuid4().hex[:8]}"
        server.create(name)
        config = RelayConfig(database_url=SecretStr(server.url(name)))
    opened: list[Outbox] = []

    def open_it() -> Outbox:
        opened.append(Outbox.open(config, home))
        return opened[-1]

    yield open_it
    for one in opened:
        one.close()


def delivery(index: int, kind: str = "created") -> Delivery:
    return Delivery(f"id-{index}", kind, "chat-7b", str(index))


def test_a_delivery_is_kept_once_in_its_order_and_outlives_the_relay(reopen: Open) -> None:
    first = reopen()
    assert first.add([delivery(2), delivery(1), delivery(2)]) == [True, True, False]
    first.close()
    again = reopen()
    assert again.add([delivery(1)]) == [False]
    assert [row.version for row in again.rows(WAITING)] == ["2", "1"]


def test_a_row_is_taken_by_one_relay_until_its_lease_ends(reopen: Open) -> None:
    one, other = reopen(), reopen()
    one.add([delivery(index) for index in range(6)])
    assert [row.version for row in one.take(2, 60.0)] == ["0", "1"]
    assert [row.version for row in other.take(10, 0.0)] == ["2", "3", "4", "5"]
    assert [row.version for row in one.take(10, 60.0)] == ["2", "3", "4", "5"]
    assert other.take(10, 60.0) == []


def test_rows_end_wait_and_are_counted(reopen: Open) -> None:
    outbox = reopen()
    outbox.add([delivery(index) for index in range(4)])
    first, second, third, _ = outbox.take(10, 60.0)
    outbox.finish([first.id], HANDLED, "flow run x")
    outbox.finish([second.id], FAILED, "gone")
    outbox.later([third.id], 60.0, "no deployment")
    counts, oldest = outbox.counts()
    assert counts == {WAITING: 2, HANDLED: 1, FAILED: 1}
    assert oldest is not None
    assert abs(time.time() - oldest) < 30
    assert [(row.version, row.reason) for row in outbox.rows(FAILED)] == [("1", "gone")]
    assert (outbox.rows(WAITING)[0].tries, outbox.rows(WAITING)[0].reason) == (1, "no deployment")
    assert outbox.take(10, 60.0) == []
    outbox.later([first.id], 0.0, "a relay that was slow")
    assert outbox.counts()[0][HANDLED] == 1, "what is finished stays so"


def test_a_start_is_noted_once(reopen: Open) -> None:
    one, other = reopen(), reopen()
    assert one.started("chat", "chat-7b", "3") is None
    assert one.note_start("chat", "chat-7b", "3", "run-1")
    assert not other.note_start("chat", "chat-7b", "3", "run-2")
    assert other.started("chat", "chat-7b", "3") == "run-1"
    assert [start["flow_run_id"] for start in other.starts()] == ["run-1"]


def test_what_is_done_long_ago_is_forgotten_but_not_what_waits(reopen: Open) -> None:
    outbox = reopen()
    outbox.add([delivery(index) for index in range(2)])
    outbox.note_start("chat", "chat-7b", "0", "run-1")
    outbox.finish([outbox.take(1, 0.0)[0].id], HANDLED, "")
    assert outbox.prune(time.time() - 60) == 0
    assert outbox.prune(time.time() + 60) == 1
    assert [row.version for row in outbox.rows(WAITING)] == ["1"]
    assert outbox.started("chat", "chat-7b", "0") == "run-1"


def test_what_was_seen_is_kept_with_the_deliveries_that_follow(reopen: Open) -> None:
    one, other = reopen(), reopen()
    seen = Seen("chat-7b", "1", "[]", "{}", 0)
    assert one.learn([seen], [delivery(1)], ["registry x"]) == 1
    assert other.learn([seen], [delivery(1)], ["registry x"]) == 0
    assert other.seen() == {("chat-7b", "1"): seen}
    assert other.marked() == {"registry x"}
    changed = Seen("chat-7b", "1", '["champion"]', "{}", 1)
    other.learn([changed], [], [])
    assert one.seen() == {("chat-7b", "1"): changed}


def test_relays_that_start_at_once_make_the_tables_once(reopen: Open) -> None:
    faults: list[Exception] = []

    def start(index: int) -> None:
        try:
            reopen().add([delivery(index)])
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=start, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(reopen().rows(WAITING)) == 6


def test_deliveries_that_come_at_once_share_commits_and_each_is_kept(reopen: Open) -> None:
    outbox = reopen()
    commits = 0

    class Counting(Outbox):
        def add(self, deliveries: Any) -> list[bool]:
            nonlocal commits
            commits += 1
            return super().add(deliveries)

    writer = Writer(Counting(outbox.engine))
    writer.start()

    async def all_at_once() -> list[bool]:
        return await asyncio.gather(*(writer.put(delivery(index % 300)) for index in range(600)))

    try:
        answers = asyncio.run(all_at_once())
    finally:
        writer.stop()
    assert (answers.count(True), answers.count(False)) == (300, 300)
    assert outbox.counts()[0][WAITING] == 300
    assert commits < 60


def test_what_no_database_can_keep_ends_no_writing(reopen: Open) -> None:
    writer = Writer(reopen())
    writer.start()
    try:
        for name in ("half \ud800", "nul \x00"):
            with pytest.raises(Refused, match="the outbox cannot keep") as no:
                asyncio.run(writer.put(Delivery(name, "created", name, "\ud800")))
            assert no.value.status == 503
        assert asyncio.run(writer.put(delivery(1)))
    finally:
        writer.stop()


def test_a_commit_that_takes_too_long_is_refused_and_kept_yet(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    adding, goes_on = outbox.add, threading.Event()

    def slow(deliveries: Any) -> list[bool]:
        goes_on.wait(30)
        return adding(deliveries)

    monkeypatch.setattr(outbox, "add", slow)
    monkeypatch.setattr("resprout.infra.relay.writer.PUT_SECONDS", 0.1)
    writer = Writer(outbox)
    writer.start()
    try:
        with pytest.raises(Refused, match="took too long to keep"):
            asyncio.run(writer.put(delivery(1)))
    finally:
        goes_on.set()
        # The loop that asked has ended by now, which ends no writing either.
        writer.stop()
    assert [row.version for row in outbox.rows(WAITING)] == ["1"]


def test_a_database_that_is_restarted_refuses_what_it_cannot_keep_and_goes_on(home: Path) -> None:
    from servers import postgres_server

    with postgres_server() as server:
        server.create("relay")
        outbox = Outbox.open(RelayConfig(database_url=SecretStr(server.url("relay"))), home)
        writer = Writer(outbox)
        writer.start()
        try:
            assert asyncio.run(writer.put(delivery(1)))
            server.stop()
            with pytest.raises(Refused, match="the outbox cannot keep"):
                asyncio.run(writer.put(delivery(2)))
            server.start()
            assert not asyncio.run(writer.put(delivery(1)))
            assert asyncio.run(writer.put(delivery(2)))
        finally:
            writer.stop()
            outbox.close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nonsense", "is no PostgreSQL address"),
        ("mysql://user:hunter2@host/x", "is no PostgreSQL address"),
        ("postgresql://user:hunter2@127.0.0.1:1/x", "the relay's database at 127.0.0.1 cannot be used"),
    ],
)
def test_a_database_that_cannot_be_used_is_a_sentence_without_its_password(
    home: Path, url: str, expected: str
) -> None:
    with pytest.raises(BadInput, match=expected) as fault:
        Outbox.open(RelayConfig(database_url=SecretStr(url)), home)
    assert "hunter2" not in str(fault.value)
