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
from resprout.infra.relay.outbox import FAILED, HANDLED, WAITING, Look, Outbox, Seen
from resprout.infra.relay.registry import Version
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
    version = Version("chat-7b", "3", created=1_700_000_000_000)
    assert one.started("chat", version) == []
    assert one.note_start("chat", version, "run-1")
    assert not other.note_start("chat", version, "run-2")
    assert other.started("chat", version) == ["run-1"]
    assert other.started("chat", Version("chat-7b", "3", created=1_700_000_000_001)) == []
    assert other.note_start("chat", version, "run-3", 1)
    assert one.started("chat", version) == ["run-1", "run-3"]
    assert [(start["flow_run_id"], start["attempt"]) for start in other.starts()] == [
        ("run-3", 1), ("run-1", 0),
    ]  # fmt: skip


def test_what_is_done_long_ago_is_forgotten_but_not_what_waits(reopen: Open) -> None:
    outbox = reopen()
    outbox.add([delivery(index) for index in range(3)])
    outbox.note_start("chat", Version("chat-7b", "0"), "run-1")
    handled, failed, _ = outbox.take(3, 0.0)
    outbox.finish([handled.id], HANDLED, "")
    outbox.finish([failed.id], FAILED, "")
    before, after = time.time() - 60, time.time() + 60
    assert outbox.prune(before, before) == 0
    assert outbox.prune(after, before) == 1
    assert [row.version for row in outbox.rows(FAILED)] == ["1"], "what failed is kept longer"
    assert outbox.prune(after, after) == 1
    assert [row.version for row in outbox.rows(WAITING)] == ["2"]
    assert outbox.started("chat", Version("chat-7b", "0")) == ["run-1"]


def test_what_failed_can_be_tried_again_and_nothing_else(reopen: Open) -> None:
    outbox = reopen()
    outbox.add([delivery(index) for index in range(5)])
    rows = outbox.take(5, 600.0)
    outbox.later([rows[0].id], 600.0, "no deployment")
    outbox.finish([rows[1].id], HANDLED, "flow run x")
    outbox.finish([row.id for row in rows[2:]], FAILED, "refused")
    assert outbox.retry([rows[0].id, rows[1].id, rows[2].id, 999]) == 1
    assert [(row.version, row.tries) for row in outbox.take(10, 600.0)] == [("2", 0)]
    assert outbox.retry(None) == 2
    assert [row.version for row in outbox.take(10, 600.0)] == ["3", "4"]
    assert outbox.counts()[0] == {WAITING: 4, HANDLED: 1, FAILED: 0}


def test_what_was_seen_is_kept_with_the_deliveries_that_follow(reopen: Open) -> None:
    one, other = reopen(), reopen()
    seen, look = Seen("chat-7b", "1", 7, "[]", "{}", 0), Look("chat-7b", 5, False)
    assert one.learn([look], [seen], [delivery(1)], ["registry x"]) == 1
    assert other.learn([look], [seen], [delivery(1)], ["registry x"]) == 0
    assert other.models() == {"chat-7b": look}
    assert other.seen() == {("chat-7b", "1"): seen}
    assert other.marked() == {"registry x"}
    changed, watched = Seen("chat-7b", "1", 8, '["champion"]', "{}", 1), Look("chat-7b", 6, True)
    other.learn([watched], [changed], [], [])
    assert one.seen() == {("chat-7b", "1"): changed}
    assert one.models() == {"chat-7b": watched}


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
        ("postgresql://user:hunter2@host:port/x", "is no PostgreSQL address"),
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
