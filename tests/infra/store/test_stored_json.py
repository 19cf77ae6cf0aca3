"""Stored JSON that somebody else wrote: one kind of error, in every reader."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attacks import DEEP
from resprout.configs.errors import VerificationFailed
from resprout.configs.infrastructure import StoreConfig
from resprout.infra.store import exports, in_use, lease
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.manifest import Manifest
from resprout.infra.store.record import Record
from resprout.infra.store.signing import STATEMENT, UNSIGNED
from resprout.infra.store.store import ArtifactStore
from resprout.infra.store.stored_json import parse_json, safetensors_header

ENVELOPE = canonical_json(
    {"payload": base64.b64encode(DEEP).decode(), "payloadType": STATEMENT, "signatures": []}
)
DAMAGED = [DEEP, b'{"a":' * 200_000, b"\xff", b"", b"{", b'{"a": 1} x']


@pytest.mark.parametrize("data", DAMAGED, ids=range(len(DAMAGED)))
def test_what_is_no_json_is_one_kind_of_error_that_names_the_object(data: bytes) -> None:
    with pytest.raises(VerificationFailed, match=r"^the note x is not valid JSON \("):
        parse_json(data, "the note x")


def test_numbers_that_json_does_not_have_are_refused_where_asked() -> None:
    assert parse_json(b'{"a": [1.5, -Infinity]}', "x") == {"a": [1.5, float("-inf")]}
    with pytest.raises(VerificationFailed, match="config"):
        parse_json(b'{"a": NaN}', "config.json", finite=True)
    with pytest.raises(VerificationFailed, match="too large"):
        parse_json(b'{"a": [{"b": 1e999}]}', "config.json", finite=True)


@pytest.mark.parametrize("data", [*DAMAGED, ENVELOPE], ids=range(len(DAMAGED) + 1))
@pytest.mark.parametrize(
    "read",
    [
        lambda data: UNSIGNED.open(data, "seal"),
        lambda data: Record.loads(data, sha256_hex(data)),
        lambda data: Manifest.loads(data, "0" * 64),
    ],
    ids=["envelope", "record", "manifest"],
)
def test_every_reader_ends_in_a_sentence(read: Callable[[bytes], Any], data: bytes) -> None:
    with pytest.raises(VerificationFailed, match=r"seal|record|manifest"):
        read(data)


def test_damaged_leases_claims_marks_and_notes_block_nobody(tmp_path: Path) -> None:
    store = ArtifactStore.from_config(StoreConfig(uri=str(tmp_path / "store")), tmp_path)
    driver, key = store.driver, "recover-x"
    locks = lease.LeaseLockManager(driver)
    assert locks.acquire_lock(key, "first", acquire_timeout=1)
    name = next(iter(driver.list("locks/")))
    driver.put_bytes(name, DEEP)
    assert not locks.is_locked(key)
    driver.put_bytes(in_use.mark_key("a" * 64), DEEP)
    assert in_use.mark_owner(driver, "a" * 64) == in_use.NOBODY
    lease.claim(driver, key, "first")
    driver.put_bytes(next(iter(driver.list("claims/"))), DEEP)
    with pytest.raises(VerificationFailed, match=r"^claims/"):
        lease.claim(driver, key, "second")
    (tmp_path / "made" / "hf").mkdir(parents=True)
    (tmp_path / "made" / "hf" / "model.safetensors").write_bytes(b"weights")
    digest = store.publish(tmp_path / "made").digest
    exports.note(store, digest)
    driver.put_bytes(next(iter(driver.list("exports/"))), DEEP)
    assert list(exports.problems(store, digest))
    assert exports.holder(store, digest) is None


def tensors(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


GOOD = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"__metadata__":{"a":"b"}}'


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", tensors(b"[]"), tensors(DEEP), tensors(b'{"w":1}', b"0"), tensors(GOOD),
     tensors(GOOD, b"00"),
     tensors(GOOD.replace(b"1]},", b'"x"]},'), b"0"), tensors(b'{"w":{"data_offsets":[0,1]}}', b"0"),
     *(tensors(GOOD.replace(b"[0,1]", place), b"0")
       for place in (b'["0","1"]', b"[-1,1]", b"[0,1.0]", b"[2,1]")),
     *(tensors(GOOD.replace(b"[1]", shape), b"0") for shape in (b"1", b'["1"]', b"[-1]", b"[1.5]", b"{}"))],
)  # fmt: skip
def test_what_is_no_safetensors_header(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(tensors(GOOD, b"0"))
    assert safetensors_header(path) == {"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    path.write_bytes(data)
    with pytest.raises(VerificationFailed, match=r"w\.safetensors"):
        safetensors_header(path)
