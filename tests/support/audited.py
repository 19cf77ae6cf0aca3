"""A home with two registered versions and a run whose gate failed, sealed and signed: no model, no flow."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from lineages import COMMIT, CONFIG, Writer, write_lineage
from resprout.configs.infrastructure import LicencesConfig, MlflowConfig
from resprout.flows.audit.table import AuditRow, audit_rows
from resprout.flows.rerun_command import digest_of_config
from resprout.flows.workspace import Workspace
from resprout.infra.provenance.ledger import Ledger
from resprout.infra.provenance.mlflow_state import locations, version_state
from resprout.infra.provenance.seal import PREDICATE, write_seal
from resprout.infra.provenance.statement import statement, write_provenance
from resprout.infra.store import exports
from resprout.infra.store.canonical import canonical_json
from resprout.infra.store.signing import Signer
from resprout.infra.store.store import ArtifactStore

NO_RULES = LicencesConfig()


@dataclass
class World:
    """A store with a version, a second one, and a run whose gate failed."""

    place: Workspace
    writer: Writer
    signer: Signer

    def rows(
        self, policy: LicencesConfig = NO_RULES, since: datetime.datetime | None = None
    ) -> list[AuditRow]:
        return audit_rows(self.place, policy, since)

    def problems(self) -> list[str]:
        return [problem for row in self.rows() for problem in row.problems]

    def path(self, key: str) -> Path:
        return self.place.home / "store" / key

    def seal(self, run: str, **about: Any) -> None:
        """Seal a run anew, with other words about it."""
        made = self.writer.made
        said = {"name": "second", "verdict": "none", "report": made["report"][1], "export": made["export"][1]}
        write_seal(self.place.store, self.place.tracker, run, **{**said, **about})


def signer(required: bool = True) -> Signer:
    return Signer(CryptoSigner(Ed25519PrivateKey.generate()), (), required)


def sealed(signer: Signer, run: str, name: str, verdict: str, report: str) -> bytes:
    """A seal on a run of which MLflow knows nothing."""
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    said = {
        "run": run, "name": name, "verdict": verdict, "report": report, "key": None, "sealed": when,
        "records": {}, "runs": {}, "provenance": [], "statement": None, "resprout": "0",
        "places": {"store": "file:///s", "artifacts": "file:///a"},
    }  # fmt: skip
    return signer.envelope(statement(f"mlflow-run:{run}", PREDICATE, said))


def furnish(home: Path, store: ArtifactStore, own: Signer) -> tuple[Workspace, Writer]:
    """Two versions of one run's export, and a run whose gate failed, all sealed."""
    from resprout.infra.mlflow.tracking import Tracker

    store.signer = own
    writer = write_lineage(store, home / "scratch")
    tracker = Tracker(MlflowConfig(), home)
    tracker.connect()
    made = writer.made
    write_provenance(store, made["export"][1], made["report"][1])
    exports.note(store, made["export"][0])
    for digest, record in made.values():
        pointer = canonical_json({"digest": digest, "record": record})
        store.driver.put_bytes(f"results/{store.get_record(record).key}", pointer)
    said = {"method": "flap", "config_digest": digest_of_config(CONFIG), "report": made["report"][0]}
    said["report_record"] = made["report"][1]
    source = CONFIG["model"]["source"]
    for number, (name, gate) in enumerate((("first", "passed"), ("second", "none"), ("refused", "failed"))):
        about = {
            **said,
            "gate": gate,
            "model_source": source,
            "code.commit": COMMIT,
            "code.resprout": "0.1.0",
        }
        run = tracker.start(name, {f"resprout.{key}": value for key, value in about.items()})
        track_stages(tracker, store, writer, run)
        version = f"models:/small/{number + 1}" if gate != "failed" else None
        if version is not None:
            tags = {
                **said, "record": made["export"][1], "digest": made["export"][0], "run": run,
                "source": source,
                "source_digest": made["model"][0], "plan": made["plan"][0], "commit": COMMIT,
                "version": "0.1.0",
            }  # fmt: skip
            tags = {f"resprout.{key}": value for key, value in tags.items()}
            tracker.make_version("small", f"{store.uri(made['export'][0])}/hf", run, tags, "")
        tracker.end(run)
        export, report = made["export"][1], made["report"][1]
        write_seal(
            store, tracker, run, name=name, verdict=gate, report=report, export=export, registered=version
        )
    tracker.point_alias("small", "candidate", "2")
    states = {number: version_state(tracker, "small", number) for number in ("1", "2")}
    here, aliases = locations(tracker, store.root_uri), {"candidate": "2"}
    Ledger(store, "small").append(None, here, versions=states, aliases=aliases)
    return Workspace(store, tracker, home), writer


def track_stages(tracker: Any, store: ArtifactStore, writer: Writer, parent: str) -> None:
    """A nested run for each record, as stages leave them."""
    for name, (digest, identity) in writer.made.items():
        record = store.get_record(identity)
        tags = {"record": identity, "digest": digest, "key": record.key, "stage": record.stage}
        tags |= {"cached": "false", "role": name}
        run = tracker.start(name, {f"resprout.{key}": value for key, value in tags.items()}, parent)
        if record.kind == "scores":
            tracker.log(run, {"perplexity": 10.0 if name == "dense" else 12.5, "params": 1000})
        tracker.end(run)
