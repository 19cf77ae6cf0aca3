"""Timestamps by a real authority: `openssl ts` behind a small HTTP server."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.infrastructure import ProofConfig
from resprout.infra.provenance.timestamp import Authority

SETTINGS = """
[tsa]
default_tsa = one
[one]
serial = {folder}/serial
crypto_device = builtin
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha512
ess_cert_id_alg = sha256
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign
[stamp]
basicConstraints = CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = critical,timeStamping
"""


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("authority")
    (folder / "settings").write_text(SETTINGS.format(folder=folder))
    (folder / "serial").write_text("01")
    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "9", "-config", "settings")
    for name in ("root", "other"):
        mine = ("-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
        openssl(folder, *new, *mine, "-extensions", "ca")
    openssl(
        folder, *new, "-keyout", "tsa.key", "-out", "tsa.pem", "-subj", "/CN=tsa", "-extensions", "stamp",
        "-CA", "root.pem", "-CAkey", "root.key",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            (folder / "query").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            openssl(
                folder, "ts", "-reply", "-config", "settings", "-section", "one", "-queryfile", "query",
                "-out", "reply",
            )  # fmt: skip
            self.send_response(200)
            self.end_headers()
            self.wfile.write((folder / "reply").read_bytes())

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def authority(folder: Path, url: str | None = None, roots: str = "root.pem") -> Authority:
    found = Authority.from_config(ProofConfig(timestamp_url=url, timestamp_roots=str(folder / roots)))
    assert found is not None
    return found


def test_the_authority_dates_the_bytes(folder: Path, url: str) -> None:
    token = authority(folder, url).stamp(b"a seal")
    assert token is not None
    when = authority(folder).dated(b"a seal", token)
    assert abs(datetime.now(UTC) - when) < timedelta(minutes=1)


def test_other_bytes_another_authority_and_a_damaged_token_do_not_hold(folder: Path, url: str) -> None:
    token = authority(folder, url).stamp(b"a seal")
    assert token is not None
    with pytest.raises(VerificationFailed, match="does not hold"):
        authority(folder).dated(b"another seal", token)
    with pytest.raises(VerificationFailed, match="does not hold"):
        authority(folder, roots="other.pem").dated(b"a seal", token)
    for at in (0, len(token) // 2, len(token) - 1):
        with pytest.raises(VerificationFailed):
            authority(folder).dated(b"a seal", token[:at] + bytes([token[at] ^ 1]) + token[at + 1 :])


def test_an_authority_that_does_not_answer_leaves_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert authority(folder, "http://127.0.0.1:9").stamp(b"a seal") is None
    assert "no timestamp from http://127.0.0.1:9" in caplog.text


def test_what_is_no_file_of_certificates_is_refused(folder: Path) -> None:
    assert Authority.from_config(ProofConfig()) is None
    for name in ("serial", "none.pem"):
        with pytest.raises(BadInput, match="holds no certificates"):
            authority(folder, roots=name)
    with pytest.raises(ValueError, match="without timestamp_roots"):
        ProofConfig(timestamp_url="http://127.0.0.1:9")
