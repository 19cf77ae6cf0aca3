"""`resprout lineage`: both ways, in every form, for every kind of reference."""

from __future__ import annotations

import base64
import io
import json
import re
import uuid
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from browser import chromium
from lineages import Writer, nodes, write_lineage
from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import MlflowConfig, StoreConfig
from resprout.flows.audit import descendants, export, render
from resprout.flows.audit.export import envelope_of
from resprout.flows.audit.lineage import Lineage, lineage_of, read_results
from resprout.flows.audit.render import page
from resprout.flows.workspace import Workspace, named
from resprout.infra.lineage import tree
from resprout.infra.provenance.statement import provenance_key, provenance_problems, write_provenance
from resprout.infra.store.signing import UNSIGNED, Signer
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.report.graph import draw


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> tuple[Workspace, Writer]:
    """A store with one run, of which MLflow has a version, the whole run and a stage's run."""
    import shutil

    from resprout.infra.mlflow.tracking import Tracker

    home = tmp_path_factory.mktemp("known")
    shutil.copy(mlflow_template, home / "mlflow.db")
    store = ArtifactStore.from_config(StoreConfig(), home)
    writer = write_lineage(store, home / "scratch")
    tracker = Tracker(MlflowConfig(), home)
    tracker.connect()
    digest, record = writer.made["export"]
    run = tracker.start("small", {"resprout.report": writer.made["report"][0]})
    tracker.start(
        "gate", {"resprout.record": writer.made["gate"][1], "resprout.digest": writer.made["gate"][0]}
    )
    tags = {"resprout.record": record, "resprout.digest": digest, "resprout.report": writer.made["report"][0]}
    tracker.make_version("small", "file:///nowhere", run, tags, "")
    tracker.point_alias("small", "candidate", "1")
    return Workspace(store, tracker, home), writer


def run_of(place: Workspace, name: str) -> str:
    found = place.tracker.client.search_runs([place.tracker.experiment_id], f"attributes.run_name = '{name}'")
    return str(found[0].info.run_id)


def text_of(shown: Any) -> str:
    from rich.console import Console

    written = io.StringIO()
    Console(width=1000, file=written).print(shown)
    return written.getvalue()


def test_every_reference_to_the_export_leads_to_the_report_and_back(known: tuple[Workspace, Writer]) -> None:
    here, writer = known
    digest, record = writer.made["export"]
    # A registered model alone is its newest version, and what names nothing stays as it is.
    assert {named(here, one) for one in ("small", "models:/small")} == {"models:/small/1"}
    assert (named(here, digest), named(here, "smal")) == (digest, "smal")
    references = ("models:/small@candidate", "models:/small/1", digest, record, run_of(here, "small"))
    for reference in (*references, *writer.made["report"]):
        story = lineage_of(here, reference)
        assert {node.record.stage for node in story.nodes().values()} == {
            "acquire_model", "acquire_text", "plan", "prune", "evaluate", "gate", "export", "report",
        }  # fmt: skip
        assert story.made is not None
        assert story.made.record_id == record
        assert story.report is not None
        assert story.report.record_id == writer.made["report"][1]
    version = lineage_of(here, "models:/small/1").version
    assert version is not None
    assert version["aliases"] == ["candidate"]


def test_a_stage_is_shown_with_what_is_behind_it_alone(known: tuple[Workspace, Writer]) -> None:
    here, writer = known
    for reference in (run_of(here, "gate"), *writer.made["gate"]):
        story = lineage_of(here, reference)
        assert [role for role, _ in story.tops] == ["gate"]
        assert "export" not in {node.record.stage for node in story.nodes().values()}


def test_a_run_that_came_to_no_report_shows_the_ends_it_came_to(known: tuple[Workspace, Writer]) -> None:
    here, writer = known
    run = here.tracker.start("broken", {})
    with pytest.raises(BadInput, match="has made nothing that is kept"):
        lineage_of(here, run)
    for name in ("model", "pruned", "text"):
        here.tracker.start(name, {"resprout.record": writer.made[name][1]}, parent=run)
    story = lineage_of(here, run)
    assert [node.record.stage for _, node in story.tops] == ["acquire_text", "prune"]
    with pytest.raises(BadInput, match="came to no artifact"):
        envelope_of(here.store, story)


def test_the_tree_says_who_when_code_licence_and_verdict_once(known: tuple[Workspace, Writer]) -> None:
    here, writer = known
    story = lineage_of(here, "models:/small@candidate")
    facts = read_results(here.store, story)
    short = text_of(render.draw(story, facts))
    assert "gate passed: perplexity_ratio 1.25 (bound 2)" in short
    assert "by ada on box, resprout 0.1.0 c0ffee000000" in short
    assert "licences of model and data: apache-2.0, cc-by-4.0, unknown" in short
    assert "licence cc-by-4.0, unknown" in short
    assert short.count("by ada") == 1
    assert "torch" not in short
    full = text_of(render.draw(story, facts, full=True))
    assert "libraries: torch 2.13.0+cpu" in full
    assert "metrics: params 1000, perplexity 12.5" in full
    assert "machine: host box, python 3.11.7" in full
    assert "seed 17" in full
    assert "None" not in full
    for _, record in writer.made.values():
        assert full.count(f"record {record}") == 1


def test_what_one_stage_has_otherwise_is_told_there(tmp_path: Path) -> None:
    store = ArtifactStore.from_config(StoreConfig(), tmp_path / "home")
    writer = write_lineage(store, tmp_path / "scratch")
    code = {"resprout": "0.2.0", "commit": "d" * 40, "dirty": "true"}
    writer.add("late", "report", "report", {"report.html": "x"}, {"export": "export"}, code=code,
               config={"name": "late", "config": {}, "command": "", "digests": {}})  # fmt: skip
    made, _ = nodes(writer)
    late = tree(store, writer.made["late"][1])
    story = Lineage("x", "x", (("report", late),), made, late)
    shown = text_of(render.draw(story, read_results(store, story)))
    assert "code resprout 0.2.0 dddddddddddd (dirty)" in shown


class Page(HTMLParser):
    """Elements of a page, and the text in them."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_holds_every_record(known: tuple[Workspace, Writer]) -> None:
    here, writer = known
    story = lineage_of(here, "models:/small@candidate")
    text = page(story, read_results(here.store, story))
    read = Page()
    read.feed(text)
    tags = {tag for tag, _ in read.elements}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"(?:src|href)=\"(?!#)", text)
    ids = {given["id"] for tag, given in read.elements if tag == "section"}
    assert ids == {f"r-{record}" for _, record in writer.made.values()}
    targets = {given["href"] for tag, given in read.elements if tag == "a"}
    assert targets <= {"#all", *(f"#{one}" for one in ids)}
    drawn = [tag for tag, _ in read.elements]
    assert drawn.count("rect") == len(writer.made)
    parents = {
        identity: [one.record_id for _, one in node.parents] for identity, node in story.nodes().items()
    }
    assert drawn.count("path") == len(draw(parents).lines)
    assert "Content-Security-Policy" in text
    assert "licence apache-2.0" in read.text
    assert "resprout.digest" in read.text


def test_the_graph_is_whole_at_1280_pixels_and_its_boxes_lead_to_records(
    known: tuple[Workspace, Writer], tmp_path: Path
) -> None:
    here, writer = known
    story = lineage_of(here, "models:/small@candidate")
    (tmp_path / "page.html").write_text(page(story, read_results(here.store, story)), encoding="utf-8")
    with chromium() as driver:
        size = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get((tmp_path / "page.html").as_uri())
        assert driver.get_log("browser") == []
        inside = "const one = document.querySelector('.graph'); return one.scrollWidth <= one.clientWidth"
        assert driver.execute_script(inside)
        record = writer.made["pruned"][1]
        section = driver.find_element("id", f"r-{record}")
        assert f"record {record}" not in section.text
        driver.find_element("css selector", f".graph a[href='#r-{record}'] rect").click()
        assert f"record {record}" in section.text


def test_the_page_escapes_what_a_name_may_hold(tmp_path: Path) -> None:
    store = ArtifactStore.from_config(StoreConfig(), tmp_path / "home")
    bad = "<script>alert(1)</script>\"'"
    writer = write_lineage(store, tmp_path / "scratch", {"model": {"source": bad}, "prune": {"method": bad}})
    made, report = nodes(writer)
    version = {"name": bad, "version": bad, "aliases": [bad], "tags": {bad: bad}, "source": bad, "run": bad}
    story = Lineage(bad, bad, (("report", report),), made, report, version)
    text = page(story, read_results(store, story))
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_openlineage_events_are_read_back_and_always_the_same(known: tuple[Workspace, Writer]) -> None:
    here, writer = known
    story = lineage_of(here, "models:/small@candidate")
    lines = list(export.lines(story, here.store.root_uri))
    assert lines == list(export.lines(story, here.store.root_uri))
    found = {one["outputs"][0]["name"]: one for one in map(json.loads, lines)}
    assert set(found) == {digest for digest, _ in writer.made.values()}
    for one in found.values():
        assert one["eventType"] == "COMPLETE"
        uuid.UUID(one["run"]["runId"])
        assert one["outputs"][0]["namespace"] == here.store.root_uri
    pruned = found[writer.made["pruned"][0]]
    assert {one["name"] for one in pruned["inputs"]} == {writer.made["model"][0], writer.made["plan"][0]}
    assert pruned["job"]["facets"]["sourceCodeLocation"]["version"].startswith("c0ffee")
    model = found[writer.made["model"][0]]["inputs"]
    assert [(one["namespace"], one["name"]) for one in model] == [("hf://acme", "tiny@" + "1" * 40)]
    assert model[0]["facets"]["version"]["datasetVersion"] == "1" * 40
    assert model[0]["facets"]["tags"]["tags"][0]["value"] == "apache-2.0"
    bucket = {one["namespace"]: one for one in found[writer.made["text"][0]]["inputs"]}["s3://data"]
    assert bucket["name"] == "b"
    assert bucket["facets"]["tags"]["tags"][0]["value"] == "unknown"


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("file:///a/b.jsonl", ("file", "/a/b.jsonl")),
        ("hf-dataset://o/n/c@1#train", ("hf-dataset://o", "n/c@1#train")),
        ("models:/name/3", ("models", "/name/3")),
        ("package://module/in/file.gguf", ("package://module", "in/file.gguf")),
        ("plain", ("file", "plain")),
    ],
)
def test_sources_have_one_namespace_and_name(uri: str, named: tuple[str, str]) -> None:
    assert export.address(uri) == named


def test_openlineage_says_what_to_install(
    known: tuple[Workspace, Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    here, writer = known
    monkeypatch.setitem(sys.modules, "openlineage.client.serde", None)
    with pytest.raises(BadInput, match=r"pip install .*openlineage-python"):
        list(export.lines(lineage_of(here, writer.made["export"][1]), ""))


def test_the_statement_comes_signed_from_the_store_or_is_built_unsigned(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from securesystemslib.signer import CryptoSigner

    signer = Signer(CryptoSigner(Ed25519PrivateKey.generate()), ())
    store = ArtifactStore.from_config(StoreConfig(), tmp_path / "home")
    store.signer = signer
    writer = write_lineage(store, tmp_path / "scratch")
    made, report = nodes(writer)
    story = Lineage("x", "x", (("report", report),), made, report)
    built, remark = envelope_of(store, story)
    assert "is unsigned" in remark
    assert json.loads(built)["signatures"] == []
    statement = json.loads(base64.b64decode(json.loads(built)["payload"]))
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert write_provenance(store, made.record_id, report.record_id) == signer.envelope(statement)
    kept, remark = envelope_of(store, story)
    assert (signer.open(kept).signed_by, remark) == ((signer.own_id,), "")
    store.driver.put_bytes(provenance_key(report.record_id), signer.envelope({**statement, "more": 1}))
    other, remark = envelope_of(store, story)
    assert "differs from the records" in remark
    assert json.loads(other)["signatures"] == []


def test_a_statement_is_signed_again_where_keys_were_rotated(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from securesystemslib.signer import CryptoSigner

    store = ArtifactStore.from_config(StoreConfig(), tmp_path / "home")
    writer = write_lineage(store, tmp_path / "scratch")
    made, report = nodes(writer)
    signers = [Signer(CryptoSigner(Ed25519PrivateKey.generate()), ()) for _ in range(2)]
    for store.signer in (UNSIGNED, *signers, signers[0]):
        data = write_provenance(store, made.record_id, report.record_id)
    assert [one["keyid"] for one in json.loads(data)["signatures"]] == [one.own_id for one in signers]
    identities = (made.record_id, report.record_id)
    assert list(provenance_problems(store, *identities, [one.own_id or "" for one in signers])) == []
    store.driver.put_bytes(provenance_key(report.record_id), signers[0].envelope(json.loads(payload(data))))
    (problem,) = provenance_problems(store, *identities, [one.own_id or "" for one in signers])
    assert f"the signature of key {signers[1].own_id}" in problem
    store.driver.delete(provenance_key(report.record_id))
    (problem,) = provenance_problems(store, *identities, [])
    assert "was removed" in problem


def payload(envelope: bytes) -> bytes:
    return base64.b64decode(json.loads(envelope)["payload"])


def test_everything_that_came_from_a_source(known: tuple[Workspace, Writer], tmp_path: Path) -> None:
    here, writer = known
    below = {"model": 7, "text": 4, "export": 1, "report": 0}
    for reference, name in (
        ("hf://acme/tiny@" + "1" * 40, "model"),
        ("hf://acme/tiny@main", "model"),
        ("hf://acme/tiny", "model"),
        ("file:///data/a.jsonl", "text"),
        ("a.jsonl", "text"),
        ("aa" * 32, "text"),
        ("s3://data/b", "text"),
        ("models:/small@candidate", "export"),
        (writer.made["report"][0], "report"),
    ):
        found = descendants.descendants_of(here, reference)
        assert found.roots == [writer.made[name][1]], reference
        assert len(found.order) - 1 == below[name], reference
        data = found.as_dict()
        assert data["versions"] == ([] if name in ("text", "report") else ["small version 1"])
        assert data["records"][found.roots[0]]["digest"] == writer.made[name][0]
    shown = text_of(descendants.draw(descendants.descendants_of(here, "hf://acme/tiny")))
    assert "made from hf://acme/tiny: 7 artifacts" in shown
    assert "= small version 1" in shown
    with pytest.raises(BadInput, match="nothing here was made from 'hf://acme/other'"):
        descendants.descendants_of(here, "hf://acme/other")


def test_a_long_descent_is_cut_and_says_so(
    known: tuple[Workspace, Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = known
    monkeypatch.setattr(descendants, "MOST_SHOWN", 3)
    shown = text_of(descendants.draw(descendants.descendants_of(here, "hf://acme/tiny")))
    assert "and 5 more; --json has them all" in shown


def test_the_way_down_keeps_to_what_was_made_of_it(known: tuple[Workspace, Writer]) -> None:
    here, writer = known
    found = descendants.descendants_of(here, writer.made["model"][1])
    made = {name: record for name, (_, record) in writer.made.items()}
    assert found.order[0] == made["model"]
    assert sorted(found.order) == sorted(record for name, record in made.items() if name != "text")
    assert set(found.children[made["plan"]]) == {made["pruned"], made["report"]}


def test_a_version_whose_report_has_no_record_is_shown_without_and_says_so(
    known: tuple[Workspace, Writer],
) -> None:
    here, writer = known
    digest, record = writer.made["export"]
    tags = {"resprout.record": record, "resprout.digest": digest, "resprout.report": "0" * 64}
    here.tracker.make_version("old", "file:///nowhere", run_of(here, "small"), tags, "")
    story = lineage_of(here, "models:/old/1")
    assert [node.record_id for _, node in story.tops] == [record]
    assert "the record of its report is not in the store" in text_of(
        render.draw(story, read_results(here.store, story))
    )


def test_what_a_terminal_would_obey_is_made_visible(tmp_path: Path) -> None:
    store = ArtifactStore.from_config(StoreConfig(), tmp_path / "home")
    bad = "hf://a/b\x1b]0;owned\x07[bold]"
    writer = write_lineage(store, tmp_path / "scratch", {"model": {"source": bad}})
    made, report = nodes(writer)
    story = Lineage(bad, bad, (("report", report),), made, report)
    shown = text_of(render.draw(story, read_results(store, story), full=True))
    assert "\x1b" not in shown
    assert "\\x1b]0;owned\\x07[bold]" in shown
