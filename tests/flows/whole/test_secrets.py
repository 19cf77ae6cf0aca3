"""Runs that fail for a secret's sake, or hold one in the address that fails, leave none of them behind."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planted import files, forms, leaks
from resprout.configs.infrastructure import without_credentials
from tiny_run import write_run

PASSWORD = "planted pass+word/4711"
QUOTED = "planted%20pass%2Bword%2F4711"
QUERY = "planted-query-8815"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:pw@host/x", "http://host/x"),
        ("postgresql://host/db?user=me&password=pw&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("could not use 'db://h/x?sslpassword=pw' now", "could not use 'db://h/x?sslpassword=***' now"),
        ("https://h/a?X-Amz-Signature=ab12&b=2", "https://h/a?X-Amz-Signature=***&b=2"),
        (
            "https://h/?access_token=a&api_key=b&ApiKey=c",
            "https://h/?access_token=***&api_key=***&ApiKey=***",
        ),
        ("https://h/?PWD=a#frag", "https://h/?PWD=***#frag"),
        ("sqlite:///x?mode=ro&cache=shared", "sqlite:///x?mode=ro&cache=shared"),
        ("https://h/?page_token_count=3&tokens=7", "https://h/?page_token_count=3&tokens=7"),
        ("no address, password=x stays a word", "no address, password=x stays a word"),
    ],
)
def test_addresses_are_shown_without_user_and_secret_parameters(address: str, shown: str) -> None:
    assert without_credentials(address) == shown


@pytest.mark.parametrize("secret", ["planted-secret-91bc", PASSWORD, "a+b/c=d&e f?g"])
def test_the_look_finds_a_secret_in_each_form(secret: str) -> None:
    for before in ("", "x", "xy", "xyz"):
        for text in (
            f"{before}{secret}",
            base64.b64encode(f"{before}{secret} and more".encode()).decode(),
            base64.urlsafe_b64encode(f"{before}{secret} and more".encode()).decode(),
            f"{before}{secret}".encode().hex(),
        ):
            assert leaks({"it": secret}, {"file": f"some {text} text".encode()}) == ["it in file"]
    assert leaks({"it": secret}, {"file": b"nothing of the kind"}) == []
    assert secret.encode() in forms(secret)


BODY = base64.b64encode(PASSWORD.encode() * 3).decode()
DAMAGED = f"-----BEGIN PRIVATE KEY-----\n{BODY}\n-----END PRIVATE KEY-----"
FAILING = {
    "a database that is not there": {
        "RESPROUT_INFRA__MLFLOW__TRACKING_URI": (
            f"postgresql+psycopg2://me:{QUOTED}@127.0.0.1:9/db?connect_timeout=2&sslpassword={QUERY}"
        )
    },
    "a bucket whose address holds a password": {
        "RESPROUT_INFRA__STORE__URI": "s3://bucket/prefix",
        "RESPROUT_INFRA__STORE__ENDPOINT_URL": f"http://me:{QUOTED}@127.0.0.1:9?token={QUERY}",
        "RESPROUT_INFRA__STORE__ACCESS_KEY_ID": "planted-access-key",
        "RESPROUT_INFRA__STORE__SECRET_ACCESS_KEY": PASSWORD,
    },
    "a signing key that is damaged": {"RESPROUT_INFRA__PROOF__SIGNING_KEY": DAMAGED},
}


@pytest.mark.parametrize("what", FAILING)
def test_a_run_that_fails_leaves_no_secret(what: str, resprout: Callable[..., Any], tmp_path: Path) -> None:
    path = write_run(tmp_path / "source", select=None, recover=None, measure=None)
    home = tmp_path / "home"
    found = resprout("run", path, "--json", "--debug", home=home, env=FAILING[what])
    assert found.code in (1, 2), found.err
    kept = {**files(tmp_path), "stdout": found.out.encode(), "stderr": found.err.encode()}
    planted = {"password": PASSWORD, "quoted": QUOTED, "query": QUERY, "access": "planted-access-key"}
    assert leaks(planted, kept) == []
    assert "Traceback" in found.err, "what --debug shows was looked at too"
    assert found.err.rstrip().splitlines()[-1].startswith("error: ")
