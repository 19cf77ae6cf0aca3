from __future__ import annotations

import asyncio
import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from prefect import flow, task
from prefect._internal.result_records import ResultRecord, ResultRecordMetadata
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.results import ResultStore
from prefect.serializers import JSONSerializer
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_LOGGING_LEVEL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    temporary_settings,
)
from prefect.transactions import IsolationLevel
from pydantic import SecretStr

from lineages import keyed
from resprout.configs.errors import StageFailed
from resprout.configs.infrastructure import ProofConfig, StoreConfig
from resprout.infra.store.canonical import canonical_json
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.record import ArtifactRef, Record
from resprout.infra.store.results import ArtifactResults
from resprout.infra.store.store import ArtifactStore


def record_of(digest, who="me"):
    """The record of a stage that made this."""
    return keyed(
        Record(
            stage="prune", key="", kind="model", content=digest, config={}, code={}, libraries={},
            machine={}, who=who, started="2026-01-01T00:00:00Z", seconds=1.0,
        )
    )  # fmt: skip


KEY = record_of("").key


@pytest.fixture
def reference(store, folder):
    digest = store.publish(folder).digest
    record = store.put_record(record_of(digest))
    return ArtifactRef(kind="model", digest=digest, key=KEY, record=record, uri=store.uri(digest), bytes=4101)


@pytest.fixture
def results(store):
    return ResultStore(
        result_storage=ArtifactResults.of(store), serializer=JSONSerializer(), cache_result_in_memory=False
    )


def test_a_reference_is_written_and_read(results, reference, store):
    assert not results.exists(KEY)
    results.write(reference.model_dump(), key=KEY)
    assert results.exists(KEY)
    assert ArtifactRef.model_validate(results.read(KEY).result) == reference
    assert list(store.driver.list("results/")) == [f"results/{KEY}"]


def test_the_asynchronous_side(results, reference):
    async def play():
        await results.awrite(reference.model_dump(), key=KEY)
        assert await results.aexists(KEY)
        return (await results.aread(KEY)).result

    assert asyncio.run(play()) == reference.model_dump()


def test_a_reference_object_is_checked_like_its_dict(results, reference, store):
    results.write(reference, key=KEY)
    assert ArtifactRef.model_validate(results.read(KEY).result) == reference
    store.driver.delete(f"manifests/{reference.digest}.json")
    assert not results.exists(KEY)


@pytest.mark.parametrize(
    "gone", ["content/{digest}/a.txt", "manifests/{digest}.json", "records/{record}.json"]
)
def test_a_result_whose_artifact_or_record_is_gone_reads_as_absent(results, reference, store, gone):
    results.write(reference.model_dump(), key=KEY)
    assert results.exists(KEY)
    store.driver.delete(gone.format(digest=reference.digest, record=reference.record))
    assert not results.exists(KEY)
    with pytest.raises(FileNotFoundError):
        results.read(KEY)


def test_a_result_of_another_key_reads_as_absent(results, reference, store):
    results.write(reference.model_dump(), key=KEY)
    store.driver.put_bytes("results/recover-k", store.driver.get_bytes(f"results/{KEY}"))
    assert results.exists(KEY)
    assert not results.exists("recover-k")


def test_damaged_results_read_as_absent(results, store):
    store.driver.put_bytes("results/k", b'{"metadata": {"serial')
    assert not results.exists("k")


def test_other_results_are_not_kept_and_never_decoded(results, store):
    for value in (None, 3, "text", {"digest": "x"}, [1, 2]):
        results.write(value, key="k")
        assert not results.exists("k")
    written = ResultRecord(
        result={"digest": "x"}, metadata=ResultRecordMetadata(storage_key="k", serializer=JSONSerializer())
    )
    store.driver.put_bytes("results/k", written.serialize())
    assert not results.exists("k")


def test_no_secret_is_serialised(s3, s3_config, home):
    store = ArtifactStore.from_config(s3_config, home)
    text = ArtifactResults.of(store).model_dump_json() + repr(ArtifactResults.of(store))
    assert s3.secret_access_key not in text
    assert s3.access_key_id not in text


def test_without_a_store_it_says_so():
    with pytest.raises(StageFailed, match="no open store in this process"):
        ArtifactResults(uri="file:///x").read_path("k")


@pytest.fixture
def prefect_home(tmp_path):
    with temporary_settings(
        {
            PREFECT_HOME: tmp_path / "prefect",
            PREFECT_API_URL: None,
            PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: True,
            PREFECT_LOGGING_LEVEL: "ERROR",
        }
    ):
        yield


def test_a_real_task_hits_runs_again_when_the_artifact_is_gone_and_frees_its_lock(
    s3_config, home, folder, prefect_home
):
    store = ArtifactStore.from_config(s3_config, home)
    locks = LeaseLockManager(store.driver, term_seconds=5)
    ran = []

    @task(
        persist_result=True,
        result_serializer="json",
        cache_result_in_memory=False,
        cache_policy=CacheKeyFnPolicy(cache_key_fn=lambda context, parameters: KEY).configure(
            isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=locks
        ),
    )
    def prune():
        assert locks.still_held(KEY)
        ran.append(1)
        digest = store.publish(folder, locks.guard(KEY)).digest
        record = record_of(digest)
        return ArtifactRef(
            kind="model", digest=digest, key=KEY, record=store.put_record(record), uri="u", bytes=1
        ).model_dump()

    prune.result_storage = ArtifactResults.of(store)

    @flow
    def play():
        states = []
        for _ in range(2):
            states.append(prune(return_state=True))
        store.driver.delete(f"content/{ArtifactRef.model_validate(states[0].result()).digest}/a.txt")
        states.append(prune(return_state=True))
        return [state.name for state in states]

    assert play() == ["Completed", "Cached", "Completed"]
    assert len(ran) == 2
    assert not locks.is_locked(KEY)
    assert list(store.driver.list("results/")) == [f"results/{KEY}"]


def test_teams_in_one_place_keep_apart_and_take_nothing_that_another_signed(tmp_path, folder):
    bucket, stores = tmp_path / "bucket", {}
    for team in ("red", "blue"):
        key = Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )  # fmt: skip
        proof = ProofConfig(signing_key=SecretStr(key.decode()), require_signatures=True)
        config = StoreConfig(uri=str(bucket / team))
        stores[team] = ArtifactStore.from_config(config, tmp_path / team, proof)
    red, blue = stores["red"], stores["blue"]
    digest = red.publish(folder).digest
    record = record_of(digest, who="red")
    red.driver.put_bytes(
        f"results/{KEY}", canonical_json({"digest": digest, "record": red.put_record(record)})
    )
    assert ArtifactResults.of(red).find(KEY) is not None
    assert ArtifactResults.of(blue).find(KEY) is None, "another prefix is another namespace"
    shutil.copytree(bucket / "red", bucket / "blue", dirs_exist_ok=True)
    assert blue.check(digest)
    assert ArtifactResults.of(blue).find(KEY) is None, "what red signed counts for nothing with blue"
    blue.put_record(record)
    assert ArtifactResults.of(blue).find(KEY) is not None
