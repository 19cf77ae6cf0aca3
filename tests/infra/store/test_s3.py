from __future__ import annotations

import datetime
import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap

import botocore.auth
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ConnectionClosedError

from resprout.configs.errors import BadInput, StageFailed, Transient, Unreachable, VerificationFailed
from resprout.configs.infrastructure import StoreConfig
from resprout.infra.store.store import ArtifactStore

SECRET = "a-very-secret-value"


def changed(config, **values):
    return StoreConfig(**{**config.model_dump(), **values})


class Answer:
    """Botocore hook: the first `times` requests are answered with an error instead of being sent."""

    def __init__(self, times: int, status: int = 503, code: str = "SlowDown") -> None:
        self.left = times
        self.status = status
        self.code = code
        self.seen = 0

    def __call__(self, request, **_):
        self.seen += 1
        if self.left <= 0:
            return None
        self.left -= 1
        body = f"<Error><Code>{self.code}</Code><Message>no</Message></Error>".encode()
        response = AWSResponse(request.url, self.status, {}, None)
        response._content = body
        return response


class TestWrongSetup:
    def test_a_missing_bucket(self, s3_config, home):
        store = ArtifactStore.from_config(changed(s3_config, uri="s3://no-such-bucket/x"), home)
        for call in (store.ensure_writable, lambda: store.check("0" * 64)):
            with pytest.raises(BadInput, match="there is no bucket s3://no-such-bucket"):
                call()

    def test_a_wrong_secret(self, s3_config, home):
        store = ArtifactStore.from_config(changed(s3_config, secret_access_key=SECRET), home)
        with pytest.raises(BadInput, match="does not accept the credentials") as caught:
            store.ensure_writable()
        assert SECRET not in str(caught.value)
        assert "SignatureDoesNotMatch" in str(caught.value)

    def test_a_wrong_key(self, s3_config, home):
        store = ArtifactStore.from_config(changed(s3_config, access_key_id="nobody"), home)
        with pytest.raises(BadInput, match="InvalidAccessKeyId"):
            store.check("0" * 64)

    def test_no_credentials_at_all(self, s3_config, home, monkeypatch, tmp_path):
        for name in list(os.environ):
            if name.startswith("AWS_"):
                monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        store = ArtifactStore.from_config(
            changed(s3_config, access_key_id=None, secret_access_key=None), home
        )
        with pytest.raises(BadInput, match="no usable credentials"):
            store.ensure_writable()

    @pytest.mark.parametrize(("hours", "sentence"), [(2, "120 minutes fast"), (-1, "60 minutes slow")])
    def test_a_clock_that_is_off(self, s3_config, home, monkeypatch, hours, sentence):
        real = botocore.auth.get_current_datetime

        def off(remove_tzinfo=True):
            return real(remove_tzinfo) + datetime.timedelta(hours=hours)

        monkeypatch.setattr("botocore.auth.get_current_datetime", off)
        monkeypatch.setattr("resprout.infra.store.s3.get_current_datetime", off)
        with pytest.raises(Unreachable, match=f"this machine's clock is {sentence}; set the clock"):
            ArtifactStore.from_config(s3_config, home).ensure_writable()

    def test_credentials_from_the_environment(self, s3, s3_config, home, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_access_key)
        store = ArtifactStore.from_config(
            changed(s3_config, access_key_id=None, secret_access_key=None), home
        )
        store.ensure_writable()

    @pytest.mark.parametrize(
        ("uri", "sentence"),
        [
            ("gs://bucket/x", "give a folder or s3://bucket/prefix"),
            ("s3://", "give s3://bucket/prefix"),
            ("s3:///prefix", "give s3://bucket/prefix"),
            ("s3://bucket/../x", "leaves its folder"),
        ],
    )
    def test_a_uri_of_another_kind(self, home, uri, sentence):
        with pytest.raises(BadInput, match=sentence):
            ArtifactStore.from_config(StoreConfig(uri=uri), home)

    def test_an_endpoint_that_is_no_address(self, s3_config, home):
        with pytest.raises(BadInput, match="endpoint_url"):
            ArtifactStore.from_config(changed(s3_config, endpoint_url="not an address"), home)

    def test_a_file_in_the_place_of_the_folder(self, tmp_path, home):
        (tmp_path / "file").touch()
        with pytest.raises(BadInput, match="is a file"):
            ArtifactStore.from_config(StoreConfig(uri=str(tmp_path / "file")), home).ensure_writable()

    def test_a_server_that_ignores_conditions(self, s3_config, home):
        store = ArtifactStore.from_config(s3_config, home)

        def strip(params, **_):
            params["headers"].pop("If-None-Match", None)

        store.driver.client.meta.events.register("before-call.s3.PutObject", strip)
        with pytest.raises(BadInput, match="ignores If-None-Match"):
            store.ensure_writable()


class TestTransient:
    def test_two_503_then_success(self, s3_config, home, folder):
        store = ArtifactStore.from_config(s3_config, home)
        answer = Answer(2)
        store.driver.client.meta.events.register("before-send.s3.PutObject", answer)
        assert store.check(store.publish(folder).digest)
        assert answer.left == 0

    def test_503_without_end(self, s3_config, home, folder, monkeypatch):
        monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
        store = ArtifactStore.from_config(s3_config, home)
        answer = Answer(10**6)
        store.driver.client.meta.events.register("before-send.s3.PutObject", answer)
        with pytest.raises(Transient, match="SlowDown"):
            store.driver.put_bytes("x", b"x")
        assert answer.seen == 5

    def test_a_server_that_is_not_there(self, s3_config, home, monkeypatch):
        monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
        store = ArtifactStore.from_config(changed(s3_config, endpoint_url="http://127.0.0.1:9"), home)
        with pytest.raises(Transient, match="cannot be reached"):
            store.ensure_writable()

    def test_a_lost_answer_to_a_conditional_write_counts_as_written(self, s3_config, home):
        store = ArtifactStore.from_config(s3_config, home)
        sent = []

        def lose(request, **_):
            if not sent:
                sent.append(1)
                store_again = ArtifactStore.from_config(s3_config, home)
                store_again.driver.put_if_absent("manifests/x", b"mine")
                raise ConnectionClosedError(endpoint_url=request.url)

        store.driver.client.meta.events.register("before-send.s3.PutObject", lose)
        assert store.driver.put_if_absent("manifests/x", b"mine")
        sent.clear()
        assert not store.driver.put_if_absent("manifests/x", b"others")

    def test_multipart_is_aborted_on_an_error(self, s3_config, home, tmp_path):
        store = ArtifactStore.from_config(s3_config, home)
        store.driver.client.meta.events.register(
            "before-send.s3.CompleteMultipartUpload", Answer(10**6, 403, "AccessDenied")
        )
        (tmp_path / "large").mkdir()
        (tmp_path / "large" / "x").write_bytes(b"x" * 17_000_000)
        with pytest.raises(BadInput, match="does not allow CompleteMultipartUpload"):
            store.publish(tmp_path / "large")
        driver = store.driver
        uploads = driver.client.list_multipart_uploads(Bucket=driver.bucket, Prefix=driver.prefix)
        assert uploads.get("Uploads", []) == []
        assert list(driver.list("manifests/")) == []

    def test_a_file_that_changes_during_the_upload_is_refused(self, s3_config, home, folder, monkeypatch):
        store = ArtifactStore.from_config(s3_config, home)
        original = store.driver.put_folder

        def change(prefix, source, manifest, *, force):
            (source / "a.txt").write_bytes(b"HELLO")
            original(prefix, source, manifest, force=force)

        monkeypatch.setattr(store.driver, "put_folder", change)
        with pytest.raises(VerificationFailed, match="not what was sent"):
            store.publish(folder)
        assert list(store.driver.list("manifests/")) == []

    def test_bytes_damaged_on_the_way_are_fetched_again(self, s3_config, home, folder):
        store = ArtifactStore.from_config(s3_config, home)
        digest = store.publish(folder).digest
        original, calls = store.driver.read, []

        def flip(key, start=0, length=None):
            calls.append(key)
            for piece in original(key, start, length):
                yield b"X" + piece[1:] if len(calls) == 1 else piece

        store.driver.read = flip
        with store.open(digest) as opened:
            assert (opened / "a.txt").read_bytes() == b"hello"
        assert len(calls) == 3

    def test_bytes_cut_on_the_way_are_fetched_again(self, s3_config, home, folder):
        store = ArtifactStore.from_config(s3_config, home)
        digest = store.publish(folder).digest
        original, calls = store.driver.read, []

        def cut(key, start=0, length=None):
            calls.append(key)
            for piece in original(key, start, length):
                yield piece[:3] if len(calls) == 1 else piece

        store.driver.read = cut
        with store.open(digest) as opened:
            assert (opened / "a.txt").read_bytes() == b"hello"


class TestFullDisk:
    def test_publishing_says_what_is_needed_and_leaves_nothing(self, tmp_path, home, folder, monkeypatch):
        def full(source, target):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))

        store = ArtifactStore.from_config(StoreConfig(uri=str(tmp_path / "store")), home)
        monkeypatch.setattr(shutil, "copyfile", full)
        with pytest.raises(StageFailed, match=r"is full: 0.0 MB are needed and .* were free; make room"):
            store.publish(folder)
        monkeypatch.undo()
        assert [key for key in store.driver.list("") if "work-" in key or "content" in key] == []
        assert store.check(store.publish(folder).digest)

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
    def test_a_really_full_disk(self, tmp_path, home):
        small = tmp_path / "small"
        small.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], check=False).returncode:
            pytest.skip("this machine does not allow mounting")
        try:
            made = tmp_path / "made"
            made.mkdir()
            (made / "x").write_bytes(b"x" * 3_000_000)
            store = ArtifactStore.from_config(StoreConfig(uri=str(small / "store")), home)
            with pytest.raises(StageFailed, match=r"3.0 MB are needed and 2\.\d MB were free"):
                store.publish(made)
            (made / "x").write_bytes(b"x" * 1_000_000)
            assert store.check(store.publish(made).digest)
        finally:
            subprocess.run(["umount", small], check=True)

    def test_no_room_for_a_download(self, s3_config, home, folder, monkeypatch):
        store = ArtifactStore.from_config(s3_config, home)
        digest = store.publish(folder).digest
        monkeypatch.setattr("resprout.infra.store.cache.free_bytes", lambda _: 100)
        with pytest.raises(StageFailed, match="is full"), store.open(digest):
            pass
        monkeypatch.undo()
        assert store.check(digest)
        with store.open(digest) as opened:
            assert (opened / "a.txt").read_bytes() == b"hello"


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux")
def test_memory_does_not_grow_with_the_file(s3_config, tmp_path):
    """160 MB up and down may cost 110 MB at most: four parts of 16 MB in flight, each held once and a bit."""
    made = tmp_path / "made"
    made.mkdir()
    with (made / "x").open("wb") as file:
        for _ in range(10):
            file.write(os.urandom(16_000_000))
    program = textwrap.dedent("""
        import json, resource, sys
        from pathlib import Path
        from resprout.configs.infrastructure import StoreConfig
        from resprout.infra.store.store import ArtifactStore
        config, made, home = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
        store = ArtifactStore.from_config(StoreConfig(**config), home)
        store.ensure_writable()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with store.open(store.publish(made).digest) as opened:
            assert (opened / "x").stat().st_size == 160_000_000
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """)
    plain = s3_config.model_dump()
    for name in ("access_key_id", "secret_access_key"):
        plain[name] = plain[name].get_secret_value()
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(plain), str(made), str(tmp_path / "home")],
        capture_output=True,
        text=True,
        check=True,
    )
    grown = int(done.stdout) * 1024
    assert grown < 110_000_000
