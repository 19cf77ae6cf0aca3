"""What a gc keeps and frees, and that it looks again."""

from __future__ import annotations

import json
import time

import pytest

from many import artifact, build, chain
from resprout.configs.errors import BadInput, StageFailed
from resprout.infra.retention.gc import ERASED, Collector, plan_collection, take_inventory
from resprout.infra.retention.gc_roots import Roots
from resprout.infra.store import exports, in_use
from resprout.infra.store.in_use import InUseReferences
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.record import Parent

NOBODY = Roots


def writers_of(store, digest):
    """The writers that have a reference to a digest, dead or alive."""
    return [key.rpartition("/")[2] for key in store.driver.list(f"pins/{digest}/")]


def freed(store, needs=NOBODY, grace=0.0):
    return set(plan_collection(take_inventory(store), needs(), grace).freed)


def collected(store, locks, needs=NOBODY, later=None):
    """Digests that a gc deletes whose second looks see `later`."""
    inventory = take_inventory(store)
    collector = Collector(store, locks, inventory, later or needs)
    collector.run(plan_collection(inventory, needs(), 0.0))
    return collector.deleted


def keys(store):
    rooms = {key.partition("/")[0] for key in store.driver.list("")}
    return rooms - {"tmp", "locks"}


def test_the_built_store_is_what_a_store_writes(store, root, tmp_path):
    made = chain(root, "run", ("plan", "prune"))
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "out.txt").write_text("run prune")
    was = {key: store.driver.get_bytes(key) for key in store.driver.list("")}
    assert store.check(made[1].digest)
    assert store.verify(made[1].digest) == []
    assert store.records_of(made[1].digest) == [made[1].record]
    assert store.children(made[0].record) == [made[1].record]
    manifest = store.publish(tmp_path / "made")
    record = store.get_record(made[1].record)
    assert record.manifest == manifest.sha256
    assert store.put_record(record) == made[1].record
    now = {key: store.driver.get_bytes(key) for key in store.driver.list("") if not key.startswith("tmp/")}
    assert now == was


def test_nothing_young_goes_not_even_what_has_no_record(store, root):
    made = chain(root, "run")
    (root / "content" / ("1" * 64)).mkdir(parents=True)
    (root / "content" / ("1" * 64) / "half.bin").write_bytes(b"half")
    assert freed(store, grace=3600.0) == set()
    assert freed(store) == {"1" * 64, *(one.digest for one in made)}


def test_the_whole_lineage_of_what_is_needed_stays(store, root, locks):
    needed, other = chain(root, "needed"), chain(root, "other")

    def needs():
        found = Roots()
        found.add_records([needed[-2].record], "test")
        return found

    # The report was made from the export, and nobody needs it.
    assert freed(store, needs) == {needed[-1].digest, *(one.digest for one in other)}
    assert set(collected(store, locks, needs)) == {needed[-1].digest, *(one.digest for one in other)}
    for one in needed[:-1]:
        assert store.check(one.digest)
        assert store.get_record(one.record)
        assert store.driver.get_bytes(f"results/{store.get_record(one.record).key}") is not None
    assert take_inventory(store).ages.keys() == {one.record for one in needed[:-1]}
    assert store.children(needed[-2].record) == []


def test_with_the_last_artifact_every_trace_of_it_goes(store, root, locks):
    made = build(root, 20)
    for one in made[0]:
        store.driver.put_bytes(f"signatures/{one.record}/key", b"{}")
    assert len(collected(store, locks)) == 20
    assert keys(store) == set()
    assert [path for path in root.rglob("*") if "tmp" not in path.parts and path.is_file()] == []


def test_an_unneeded_record_of_needed_content_goes_with_its_result(store, root, locks):
    kept = artifact(root, "plan", "same", ())
    parent = artifact(root, "acquire_model", "parent", ())
    again = artifact(
        root, "plan", "same", (Parent(role="input", digest=parent.digest, record=parent.record),)
    )
    assert again.digest == kept.digest

    def needs():
        found = Roots()
        found.add_records([kept.record], "test")
        return found

    assert collected(store, locks, needs) == [parent.digest]
    assert store.check(kept.digest)
    assert store.records_of(kept.digest) == [kept.record]
    # The entry was that of the other record, whose lineage is gone; the one that stays takes its place.
    assert json.loads(store.driver.get_bytes(f"results/{store.get_record(kept.record).key}")) == {
        "digest": kept.digest,
        "record": kept.record,
    }
    assert len(list(store.driver.list("results/"))) == 1


def test_what_a_living_writer_named_stays_with_all_behind_it(store, root, locks):
    made = chain(root, "run")
    others = LeaseLockManager(store.driver)
    writer = InUseReferences(store.driver, others)
    inventory = take_inventory(store)
    planned = plan_collection(inventory, Roots(), 0.0)
    writer.hold(made[4].digest)
    collector = Collector(store, locks, inventory, Roots)
    collector.run(planned)
    assert set(collector.deleted) == {one.digest for one in made[5:]}
    assert all(store.check(one.digest) for one in made[:5])
    assert list(store.driver.list("gc/")) == []
    writer.close()
    others.close()
    assert len(collected(store, locks)) == 5


def test_the_pins_of_a_dead_writer_count_for_nothing_and_it_knows(store, root, locks):
    made = chain(root, "run")
    others = LeaseLockManager(store.driver, term_seconds=0.3)
    writer = InUseReferences(store.driver, others)
    writer.hold(made[0].digest)
    name = writer.writer
    # As if the process were stopped: no heartbeat, and the lease runs out by the store's clock.
    others._stop.set()
    time.sleep(1.6)
    assert len(collected(store, locks)) == 10
    assert writers_of(store, made[0].digest) == []
    assert not others.still_held(name)
    with pytest.raises(StageFailed, match="removed meanwhile"):
        writer.confirm(store.check)
    others.close()


def test_what_is_registered_after_the_plan_is_seen(store, root, locks):
    made = chain(root, "run")

    def later():
        found = Roots()
        found.add_records([made[-1].record], "registered meanwhile")
        return found

    assert collected(store, locks, later=later) == []
    assert all(store.check(one.digest) for one in made)


def test_a_record_that_came_after_the_plan_is_seen(store, root, locks):
    made = chain(root, "run")
    inventory = take_inventory(store)
    planned = plan_collection(inventory, Roots(), 0.0)
    artifact(root, "other", "run export", (Parent(role="x", digest=made[3].digest, record=made[3].record),))
    collector = Collector(store, locks, inventory, Roots)
    collector.run(planned)
    # The same bytes were made once more, from another parent.
    assert made[-2].digest not in collector.deleted
    assert made[3].digest not in collector.deleted
    assert made[-1].digest in collector.deleted


def test_two_gcs_do_not_work_at_once(store, root, locks):
    build(root, 10)
    others = LeaseLockManager(store.driver)
    others.acquire_lock("gc", "another")
    with pytest.raises(BadInput, match="another gc or a backup is at work"):
        collected(store, locks)
    others.close()


def test_a_gc_that_lost_its_lease_deletes_nothing_more(store, root, locks):
    made = chain(root, "run")
    others = LeaseLockManager(store.driver)
    inventory = take_inventory(store)

    def taken_over():
        # A writer that finds the mark of a gc whose lease ran out.
        locks._held[collector.name].lost = True
        return Roots()

    collector = Collector(store, locks, inventory, taken_over)
    with pytest.raises(StageFailed, match="run it again"):
        collector.run(plan_collection(inventory, Roots(), 0.0))
    assert all(store.check(one.digest) for one in made)
    others.close()


def test_marks_of_a_dead_gc_are_cleared_by_the_next(store, root, locks):
    made = chain(root, "run")
    in_use.mark(store.driver, made[0].digest, "gc-dead")
    assert len(collected(store, locks)) == 10
    assert list(store.driver.list("gc/")) == []


def test_a_result_that_leads_outside_the_store_is_left_alone(store, root, locks, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    made = artifact(root, "../../../outside", "x", ())
    collected(store, locks)
    assert outside.read_text() == "mine"
    assert not store.check(made.digest)


def exported(root, name, weights):
    """An export with these weights in a folder."""
    files = {"hf/model.safetensors": weights, "hf/tokenizer.json": f"of {name}"}
    return artifact(root, "export", name, (), files)


def test_the_note_on_weights_leads_to_an_export_that_stays_or_goes(store, root, locks):
    one, two, other = (
        exported(root, "one", "w"),
        exported(root, "two", "w"),
        exported(root, "other", "v"),
    )
    for made in (one, two, other):
        exports.note(store, made.digest)
    first = exports.holder(store, one.digest)
    kept = two if first == one.digest else one

    def needs():
        found = Roots()
        found.add_records([kept.record], "test")
        return found

    assert set(collected(store, locks, needs)) == {one.digest, two.digest, other.digest} - {kept.digest}
    assert list(exports.problems(store, kept.digest)) == []
    assert exports.holder(store, kept.digest) == kept.digest
    assert len(list(store.driver.list("exports/"))) == 1


def test_a_note_that_leads_nowhere_is_written_anew(store, root):
    made = exported(root, "one", "w")
    (name,) = exports.names(store.manifest(made.digest).files)
    store.driver.put_bytes(name, exports.noted("0" * 64, "hf"))
    exports.note(store, made.digest)
    assert exports.holder(store, made.digest) == made.digest


@pytest.mark.parametrize("with_parent", [True, False])
def test_a_result_goes_over_to_a_kept_record_of_its_key_that_made_something_else(
    store, root, locks, with_parent
):
    parent = artifact(root, "acquire_model", "parent", ())
    parents = (Parent(role="input", digest=parent.digest, record=parent.record),) if with_parent else ()
    kept = artifact(root, "prune", "kept", parents, key="prune-key")
    later = artifact(root, "prune", "later", parents, key="prune-key")
    other = artifact(root, "prune", "other", parents)

    def needs():
        found = Roots()
        found.add_records([kept.record], "test")
        return found

    assert {later.digest, other.digest} <= set(collected(store, locks, needs))
    assert json.loads(store.driver.get_bytes("results/prune-key")) == {
        "digest": kept.digest,
        "record": kept.record,
    }


def test_of_what_an_erased_artifact_was_made_from_only_the_records_stay(store, root, locks):
    made = chain(root, "run")
    erased = Roots(erased={made[4].digest})
    others = {one.digest for one in made} - {made[4].digest}
    assert freed(store, lambda: erased) == others
    assert plan_collection(take_inventory(store), erased, 0.0).kept == {ERASED: 1}
    assert set(collected(store, locks, lambda: erased)) == others
    assert store.check(made[4].digest)
    assert take_inventory(store).ages.keys() == {one.record for one in made[:5]}
    assert [key for one in others for key in store.driver.list(f"content/{one}/")] == []
    assert freed(store, lambda: erased) == set()
    # A registered version still needs the bytes.
    again = chain(root, "other")
    needed = Roots(records={again[4].record: "test"}, erased={again[2].digest})
    assert freed(store, lambda: needed).isdisjoint(one.digest for one in again[:5])


def test_what_is_erased_after_the_plan_keeps_its_records(store, root, locks):
    made = chain(root, "run")
    collected(store, locks, later=lambda: Roots(erased={made[4].digest}))
    assert take_inventory(store).ages.keys() == {one.record for one in made[:5]}
