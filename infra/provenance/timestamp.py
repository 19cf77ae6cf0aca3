"""RFC 3161 timestamps on seals: a date that whoever holds the signing key cannot set back."""

from __future__ import annotations

import hashlib
import logging
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.infrastructure import ProofConfig
from resprout.infra.identity import install_command

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0
QUERY = "application/timestamp-query"


class Authority:
    """A timestamp authority: `url` dates (None: only checks), its answers are held against `roots`."""

    def __init__(self, url: str | None, roots: list[Certificate]) -> None:
        self.url = url
        self._roots = roots

    @classmethod
    def from_config(cls, config: ProofConfig) -> Authority | None:
        """The authority that `infra.proof` names; None without one, BadInput where it cannot be used."""
        if config.timestamp_roots is None:
            return None
        from cryptography.x509 import load_pem_x509_certificates

        where = f"infra.proof.timestamp_roots {config.timestamp_roots}"
        try:
            import rfc3161_client  # noqa: F401
        except ImportError:
            raise BadInput(
                "infra.proof names a timestamp authority, which needs rfc3161-client; "
                f"run {install_command('timestamp')}"
            ) from None
        try:
            roots = load_pem_x509_certificates(Path(config.timestamp_roots).expanduser().read_bytes())
        except (OSError, ValueError):
            raise BadInput(f"{where} holds no certificates; name a PEM file of the authority's") from None
        return cls(config.timestamp_url, roots)

    def stamp(self, data: bytes) -> bytes | None:
        """The authority's token on the data, checked; None, and a warning, where none was to be had."""
        import requests
        from rfc3161_client import TimestampRequestBuilder, decode_timestamp_response

        if self.url is None:
            return None
        query = TimestampRequestBuilder().data(data).build()
        try:
            answer = requests.post(
                self.url, data=query.as_bytes(), headers={"Content-Type": QUERY}, timeout=TIMEOUT_SECONDS
            )
            answer.raise_for_status()
            self._check(decode_timestamp_response(answer.content), data, query.nonce)
        except (requests.RequestException, ValueError, VerificationFailed) as error:
            what = " ".join(str(error).split())[:200]
            logger.warning("no timestamp from %s: %s; the seal is not dated by it", self.url, what)
            return None
        return answer.content

    def dated(self, data: bytes, token: bytes) -> datetime:
        """When the authority saw the data; VerificationFailed where the token is not its word on them."""
        from rfc3161_client import decode_timestamp_response

        try:
            response = decode_timestamp_response(token)
        except ValueError as error:
            raise VerificationFailed("the timestamp is damaged") from error
        self._check(response, data, None)
        found: datetime = response.tst_info.gen_time
        return found

    def _check(self, response: Any, data: bytes, nonce: int | None) -> None:
        from rfc3161_client import VerificationError, VerifierBuilder

        # The builder's own default hands the same list to all builders.
        builder = VerifierBuilder(roots=[], intermediates=[])
        for one in self._roots:
            own = one.issuer == one.subject
            builder = builder.add_root_certificate(one) if own else builder.add_intermediate_certificate(one)
        if nonce is not None:
            builder = builder.nonce(nonce)
        # The token says with which of these it hashed.
        imprint = response.tst_info.message_imprint.message if response.status == 0 else b""
        hashed = {len(one): one for one in (hashlib.sha512(data).digest(), hashlib.sha256(data).digest())}
        try:
            builder.build().verify(response, hashed.get(len(imprint), b""))
        except (VerificationError, ValueError) as error:
            raise VerificationFailed(f"the timestamp does not hold: {error}") from error


def token_key(run_id: str) -> str:
    """Key of the object that holds the timestamp on a run's seal."""
    return f"timestamps/{run_id}.tsr"
