"""What a tombstone names is erased and not tampered with, on a folder and in a bucket."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.infrastructure import ProofConfig
from resprout.infra.store import tombstones
from resprout.infra.store.store import ArtifactStore
from resprout.infra.store.tombstones import Tombstone

WHEN = "2026-01-02T03:04:05+00:00"


def erase(store, digest, paths):
    files = {entry.path: entry.sha256 for entry in store.manifest(digest).files if entry.path in paths}
    stone = Tombstone(digest=digest, files=files, tracked={}, reason="request 17", who="me", when=WHEN)
    tombstones.put(store.driver, store.signer, stone)
    store.driver.delete_all(f"content/{digest}/{path}" for path in paths)
    store.forget(digest)


@pytest.mark.parametrize("paths", [("a.txt",), ("a.txt", "sub/b.bin")])
def test_erased_bytes_are_missed_in_one_sentence(store, folder, paths):
    digest = store.publish(folder).digest
    with store.open(digest):
        pass
    erase(store, digest, paths)
    assert store.verify(digest) == []
    assert not store.check(digest)
    sentence = f"artifact {digest} was erased on 2026-01-02: request 17; its bytes are gone"
    with pytest.raises(BadInput, match=sentence), store.open(digest):
        pass
    with pytest.raises(BadInput, match=sentence):
        store.read(digest, "a.txt")
    with pytest.raises(BadInput, match=sentence):
        store.publish(folder)
    assert store.manifest(digest).digest == digest
    assert list(tombstones.erased(store.driver)) == [digest]


def test_a_file_that_is_missing_and_not_listed_is_a_problem(store, folder):
    digest = store.publish(folder).digest
    erase(store, digest, ("a.txt",))
    store.driver.delete(f"content/{digest}/sub/b.bin")
    assert ["b.bin is missing" in problem for problem in store.verify(digest)] == [True]


def test_a_file_that_is_listed_and_there_is_a_problem(store, folder):
    digest = store.publish(folder).digest
    erase(store, digest, ("a.txt",))
    store.driver.put_bytes(f"content/{digest}/a.txt", b"hello")
    assert ["a tombstone says that it was erased" in problem for problem in store.verify(digest)] == [True]


def test_a_tombstone_that_was_changed_or_is_anothers_is_refused(store, folder):
    digest = store.publish(folder).digest
    erase(store, digest, ("a.txt",))
    key = f"tombstones/{digest}.json"
    data = store.driver.get_bytes(key)
    store.driver.put_bytes(f"tombstones/{'0' * 64}.json", data)
    with pytest.raises(VerificationFailed, match="is that of another artifact"):
        store.tombstone("0" * 64)
    for index in range(0, len(data), 7):
        store.driver.put_bytes(key, data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])
        with pytest.raises(VerificationFailed):
            store.tombstone(digest)


def test_where_signatures_are_required_an_unsigned_tombstone_counts_for_nothing(config, home, folder):
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    proof = ProofConfig(signing_key=SecretStr(pem.decode()), require_signatures=True)
    signing, plain = (
        ArtifactStore.from_config(config, home, proof),
        ArtifactStore.from_config(config, home),
    )
    digest = signing.publish(folder).digest
    erase(plain, digest, ("a.txt",))
    with pytest.raises(VerificationFailed, match="has no signature that counts"):
        signing.tombstone(digest)
    erase(signing, digest, ("a.txt",))
    assert signing.tombstone(digest).signed_by == signing.signer.key_ids
    assert signing.verify(digest) == []
    key = f"tombstones/{digest}.json"
    envelope = json.loads(signing.driver.get_bytes(key))
    envelope["signatures"] = []
    signing.driver.put_bytes(key, json.dumps(envelope, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(VerificationFailed, match="which was removed"):
        plain.tombstone(digest)
