"""One delivery of MLflow's webhook: proven by its signature and time, and read for what it is about.

Signature: "v1," + base64(HMAC-SHA256(secret, "<delivery id>.<timestamp>.<body>")), after Standard Webhooks.
It proves the server that sent it, not who registered the version, so only name and version are taken.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass

ID, TIMESTAMP, SIGNATURE = "x-mlflow-delivery-id", "x-mlflow-timestamp", "x-mlflow-signature"
MOST_CHARS = 256
KINDS = {
    ("model_version", "created"): "created",
    ("model_version_alias", "created"): "alias",
    ("model_version_tag", "set"): "tag",
}


class Refused(Exception):
    """A delivery that is not taken: the HTTP status, a word for the metrics, and a sentence for the log."""

    def __init__(self, status: int, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.reason, self.sentence = status, reason, sentence


@dataclass(frozen=True)
class Delivery:
    """Something happened to a model version; `id` is the same where it is told again."""

    id: str
    kind: str
    name: str
    version: str


def prove(headers: Mapping[str, str], body: bytes, secret: bytes, now: float, window: float) -> str:
    """The delivery's id, once signature and time are right; raises Refused."""
    identity, stamp, given = (headers.get(name, "") for name in (ID, TIMESTAMP, SIGNATURE))
    if (
        not identity
        or len(identity) > MOST_CHARS
        or not identity.isprintable()
        or not (stamp.isascii() and stamp.isdigit())
        or len(stamp) > 12
    ):
        raise Refused(401, "headers", "a delivery without MLflow's id or timestamp")
    signed = b".".join((identity.encode("latin-1", "replace"), stamp.encode(), body))
    wanted = b"v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest())
    one_of = given.encode("latin-1", "replace").split()
    if not any(hmac.compare_digest(wanted, one) for one in one_of):
        raise Refused(
            401,
            "signature",
            "a delivery whose signature is wrong; infra.relay.webhook_secret must be that of the webhook",
        )
    apart = now - int(stamp)
    if abs(apart) > window:
        raise Refused(
            401,
            "time",
            f"a signed delivery whose time is {abs(apart):.0f} s {'behind' if apart > 0 else 'ahead of'} "
            f"this machine's clock, where {window:.0f} s are allowed: it is a replay, or the clocks of "
            "MLflow's machine and this one differ (set both by NTP)",
        )
    return identity


def read(identity: str, body: bytes) -> Delivery | None:
    """What a proven delivery is about, None where no rule can be for it; Refused where it is malformed."""
    try:
        data = json.loads(body)
        kind = KINDS.get((data["entity"], data["action"]))
        if kind is None:
            return None
        name, version = data["data"]["name"], str(data["data"]["version"])
    except (ValueError, RecursionError, KeyError, TypeError):
        raise Refused(400, "malformed", "a signed delivery that is not of the form MLflow sends") from None
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= MOST_CHARS
        # No database keeps a NUL or half a surrogate pair, and a line break would forge lines of the log.
        or not name.isprintable()
        or len(version) > MOST_CHARS
        or not version.isascii()
        or not version.isdigit()
    ):
        raise Refused(400, "malformed", "a signed delivery that names no model version")
    return Delivery(identity, kind, name, version)
