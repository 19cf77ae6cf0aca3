"""Ed25519 signatures in DSSE envelopes (github.com/secure-systems-lab/dsse), through securesystemslib.

The library brings boto3 with it, so it is imported where something is signed or read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.infrastructure import ProofConfig
from resprout.infra.store.canonical import canonical_json
from resprout.infra.store.stored_json import parse_json

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, Key

STATEMENT = "application/vnd.in-toto+json"
"""Payload type of the statements in envelopes."""
RECORD = "application/vnd.resprout.record+json"
"""Payload type under which records are signed, beside their bytes."""
ADOPT = "where it is older than the key, `resprout sign --adopt` signs it after a full verification"
"""Advice where a signature is missing."""
HEX_KEY = re.compile(r"^ed25519:([0-9a-f]{64})$")


@dataclass(frozen=True)
class Opened:
    """A statement out of its envelope, and the ids of the known keys that signed it."""

    statement: dict[str, Any]
    signed_by: tuple[str, ...]
    unknown: tuple[str, ...]
    """Ids of keys that are not among the verification keys; what they signed counts as unsigned."""


class Signer:
    """Signs with this process's key, and knows whose signatures count.

    `key_ids` are those of the known keys; the own key is one of them.
    """

    def __init__(self, own: CryptoSigner | None, known: tuple[Key, ...], required: bool = False) -> None:
        self._own = own
        self._known = {key.keyid: key for key in (*([own.public_key] if own else []), *known)}
        self.required = required
        self.adopting = False
        """Whether what is unsigned is read in order to be signed, and taken as it is until then."""

    @classmethod
    def from_config(cls, config: ProofConfig) -> Signer:
        """The signer that `infra.proof` describes; BadInput where a key cannot be used."""
        known = tuple(_public(text) for text in config.verification_keys)
        signer = cls(_own(config), known, config.require_signatures is True)
        if config.require_signatures is None:
            signer.required = bool(signer.key_ids)
        if signer.required and not signer.key_ids:
            raise BadInput(
                "infra.proof.require_signatures is on, but no key is known; give signing_key, "
                "signing_key_file or verification_keys"
            )
        return signer

    def require_own_key(self) -> None:
        """BadInput where signatures are required and there is no key to sign what a run makes."""
        if self.required and not self.signs:
            raise BadInput(
                "infra.proof requires signatures, because it knows verification keys, but has no key to sign "
                "with, so nothing that this run makes would count; give signing_key or signing_key_file, or "
                "set require_signatures: false"
            )

    def adopts(self) -> None:
        """Accept unsigned objects as they are from now on; signatures of known keys must still hold."""
        self.required, self.adopting = False, True

    def excuses(self, opened: Opened) -> bool:
        """Whether a statement that bytes are missing on purpose counts: signed, where keys are known."""
        return bool(opened.signed_by) or self.adopting or not (self.required or self.key_ids)

    @property
    def signs(self) -> bool:
        return self._own is not None

    @property
    def own_id(self) -> str | None:
        return self._own.public_key.keyid if self._own else None

    @property
    def key_ids(self) -> tuple[str, ...]:
        return tuple(self._known)

    def signature(self, payload_type: str, payload: bytes) -> bytes | None:
        """The own key's signature on the payload as canonical JSON {"keyid", "sig"}; None without a key."""
        if self._own is None:
            return None
        from securesystemslib.dsse import Envelope

        return canonical_json(self._own.sign(Envelope(payload, payload_type, {}).pae()).to_dict())

    def accepts(self, key_id: str, payload_type: str, payload: bytes, signature: bytes) -> bool:
        """Whether `signature` is this known key's on the payload."""
        from securesystemslib.dsse import Envelope
        from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
        from securesystemslib.signer import Signature

        key = self._known.get(key_id)
        if key is None:
            return False
        try:
            given = parse_json(signature, "the signature")
            if canonical_json(given) != signature or given["keyid"] != key_id:
                return False
            key.verify_signature(Signature.from_dict(given), Envelope(payload, payload_type, {}).pae())
        except (UnverifiedSignatureError, VerificationError, ValueError, KeyError, TypeError, AttributeError):
            return False
        return True

    def envelope(self, statement: dict[str, Any]) -> bytes:
        """The statement in a DSSE envelope as canonical JSON; with no signature where there is no key."""
        from securesystemslib.dsse import Envelope

        made = Envelope(canonical_json(statement), STATEMENT, {})
        if self._own is not None:
            made.sign(self._own)
        return canonical_json(made.to_dict())

    def countersigned(self, data: bytes, what: str = "envelope") -> bytes:
        """The envelope with the own key's signature beside those that it has."""
        from securesystemslib.dsse import Envelope

        self.open(data, what)
        envelope = Envelope.from_dict(parse_json(data, what))
        if self._own is not None and self.own_id not in envelope.signatures:
            envelope.sign(self._own)
        return canonical_json(envelope.to_dict())

    def open(self, data: bytes, what: str = "envelope") -> Opened:
        """The statement in an envelope; VerificationFailed where the envelope or a signature is broken."""
        from securesystemslib.dsse import Envelope

        try:
            envelope = Envelope.from_dict(parse_json(data, what))
            statement = parse_json(envelope.payload, what)
            sound = (
                canonical_json(envelope.to_dict()) == data and canonical_json(statement) == envelope.payload
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VerificationFailed(f"the {what} is damaged ({type(error).__name__})") from error
        if not sound or envelope.payload_type != STATEMENT or not isinstance(statement, dict):
            raise VerificationFailed(f"the {what} is damaged: it is not as resprout writes it")
        for key_id, signature in envelope.signatures.items():
            if key_id in self._known and not self.accepts(
                key_id, STATEMENT, envelope.payload, canonical_json(signature.to_dict())
            ):
                raise VerificationFailed(
                    f"the {what} was changed: the signature of key {key_id} does not hold"
                )
        known = tuple(key_id for key_id in envelope.signatures if key_id in self._known)
        return Opened(statement, known, tuple(key for key in envelope.signatures if key not in known))


UNSIGNED = Signer(None, ())


def signed_only_by(data: bytes, key_id: str | None) -> bytes:
    """A sound envelope without the signatures of any other key; None: without any."""
    from securesystemslib.dsse import Envelope

    envelope = Envelope.from_dict(parse_json(data, "the envelope"))
    for other in {*envelope.signatures} - {key_id}:
        del envelope.signatures[other]
    return canonical_json(envelope.to_dict())


def _own(config: ProofConfig) -> CryptoSigner | None:
    if config.signing_key is not None:
        pem, where = config.signing_key.get_secret_value().encode(), "infra.proof.signing_key"
    elif config.signing_key_file is not None:
        where = f"infra.proof.signing_key_file {config.signing_key_file}"
        pem = _read(config.signing_key_file, where)
    else:
        return None
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    try:
        private = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The error's own text may hold bytes of the key.
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise BadInput(
            f"{where} is no ed25519 private key in PEM without a password; make one with "
            "`openssl genpkey -algorithm ed25519`"
        )
    return CryptoSigner(private)


def _public(text: str) -> Key:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    if match := HEX_KEY.match(text):
        return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(bytes.fromhex(match[1])))
    where = f"infra.proof.verification_keys: '{text}'"
    try:
        public = load_pem_public_key(_read(text, where))
    except (ValueError, UnsupportedAlgorithm):
        public = None
    if not isinstance(public, Ed25519PublicKey):
        raise BadInput(
            f"{where} is no ed25519 public key; give a PEM file (`openssl pkey -in key.pem -pubout`) or "
            "ed25519: and 64 hexadecimal digits"
        )
    return SSlibKey.from_crypto(public)


def _read(path: str, where: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise BadInput(f"{where} cannot be read ({error.strerror}); name a file with a key in PEM") from None
