"""Keys, signatures and envelopes; the vectors are those of RFC 8032 and of the DSSE specification."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import SecretStr

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.infrastructure import ProofConfig
from resprout.infra.store.canonical import canonical_json
from resprout.infra.store.signing import RECORD, Signer

SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
"""Test 1 of RFC 8032, section 7.1."""


def pem(key: Ed25519PrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def signer(key: Ed25519PrivateKey | None = None, *known: str, required: bool = False) -> Signer:
    secret = SecretStr(pem(key)) if key else None
    return Signer.from_config(
        ProofConfig(signing_key=secret, verification_keys=known, require_signatures=required)
    )


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(SEED)


def test_the_key_of_the_standard_has_its_public_half(key: Ed25519PrivateKey) -> None:
    assert key.public_key().public_bytes_raw().hex() == PUBLIC


def test_what_is_signed_is_the_pre_authentication_encoding_of_dsse(key: Ed25519PrivateKey) -> None:
    signature = json.loads(signer(key).signature("http://example.com/HelloWorld", b"hello world") or b"")
    # PAE(type, body) = "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body, with the specification's example.
    encoded = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    key.public_key().verify(bytes.fromhex(signature["sig"]), encoded)
    envelope = json.loads(signer(key).envelope({"a": 1}))
    body = base64.b64decode(envelope["payload"])
    key.public_key().verify(
        base64.b64decode(envelope["signatures"][0]["sig"]),
        b"DSSEv1 %d application/vnd.in-toto+json %d %b"
        % (len("application/vnd.in-toto+json"), len(body), body),
    )


def test_another_key_another_payload_and_another_type_are_not_accepted(key: Ed25519PrivateKey) -> None:
    mine, other = signer(key), signer(Ed25519PrivateKey.generate())
    signature = mine.signature(RECORD, b"record") or b""
    (own,) = mine.key_ids
    assert mine.accepts(own, RECORD, b"record", signature)
    assert not mine.accepts(own, RECORD, b"recorf", signature)
    assert not mine.accepts(own, "text/plain", b"record", signature)
    assert not other.accepts(own, RECORD, b"record", signature)
    assert not mine.accepts(own, RECORD, b"record", other.signature(RECORD, b"record") or b"")
    assert not mine.accepts(own, RECORD, b"record", b"{}")
    assert not mine.accepts(own, RECORD, b"record", signature + b" ")


def test_a_key_that_was_rotated_out_still_counts_and_a_foreign_one_does_not(key: Ed25519PrivateKey) -> None:
    old = signer(key).envelope({"made": "before"})
    after = signer(Ed25519PrivateKey.generate(), f"ed25519:{PUBLIC}")
    assert len(after.open(old).signed_by) == 1
    opened = signer(Ed25519PrivateKey.generate()).open(old)
    assert (opened.signed_by, len(opened.unknown)) == ((), 1)


def test_a_changed_envelope_is_refused(key: Ed25519PrivateKey) -> None:
    mine = signer(key)
    sound = json.loads(mine.envelope({"verdict": "failed"}))
    forged = {**sound, "payload": base64.b64encode(canonical_json({"verdict": "passed"})).decode()}
    for changed in (forged, {**sound, "payloadType": "text/plain"}, {**sound, "more": 1}, {}, []):
        with pytest.raises(VerificationFailed):
            mine.open(canonical_json(changed))
    with pytest.raises(VerificationFailed, match="is damaged"):
        mine.open(b"\xff")


def test_without_a_key_nothing_is_signed(key: Ed25519PrivateKey) -> None:
    plain = signer()
    assert plain.signature(RECORD, b"record") is None
    assert json.loads(plain.envelope({"a": 1}))["signatures"] == []
    assert signer(key).open(plain.envelope({"a": 1})).signed_by == ()


def test_keys_out_of_files(key: Ed25519PrivateKey, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text(pem(key))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)
    mine = Signer.from_config(ProofConfig(signing_key_file=str(tmp_path / "key.pem")))
    theirs = Signer.from_config(ProofConfig(verification_keys=(str(tmp_path / "public.pem"),)))
    assert mine.key_ids == theirs.key_ids == signer(None, f"ed25519:{PUBLIC}").key_ids
    assert (mine.signs, theirs.signs) == (True, False)


def test_bad_keys_are_refused_in_one_sentence_without_their_bytes(tmp_path: Path) -> None:
    rsa = generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for text in ("nonsense-with-planted-secret", rsa.decode()):
        with pytest.raises(BadInput, match="is no ed25519 private key in PEM") as raised:
            Signer.from_config(ProofConfig(signing_key=SecretStr(text)))
        assert "planted" not in str(raised.value)
        assert text.split()[-1] not in str(raised.value)
    with pytest.raises(BadInput, match="cannot be read"):
        Signer.from_config(ProofConfig(signing_key_file=str(tmp_path / "none.pem")))
    (tmp_path / "key.pem").write_bytes(rsa)
    for known in ("ed25519:12", str(tmp_path / "key.pem"), str(tmp_path / "none.pem")):
        with pytest.raises(BadInput, match="verification_keys"):
            signer(None, known)
    with pytest.raises(BadInput, match="require_signatures is on, but no key is known"):
        signer(required=True)
    with pytest.raises(ValueError, match="both given"):
        ProofConfig(signing_key=SecretStr("a"), signing_key_file="b")
