"""`verify`: everything behind a reference, in store and MLflow, held against each other."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.flows.audit.claims import claims_of, stands_for
from resprout.flows.place import RUN_ID, Found, Place, find, parts
from resprout.infra import identity
from resprout.infra.lineage import Node, trees
from resprout.infra.mlflow import search
from resprout.infra.mlflow.tracking import RECORD
from resprout.infra.provenance.ledger import ledgers
from resprout.infra.provenance.misplaced import misplaced
from resprout.infra.provenance.mlflow_state import stage_run_problems
from resprout.infra.provenance.seal import Seal, read_collection, read_seal
from resprout.infra.provenance.shown import Shown
from resprout.infra.provenance.statement import provenance_problems
from resprout.infra.provenance.stored import Stored
from resprout.infra.store import keys
from resprout.infra.store.filesystem import plain_status, unsafe
from resprout.infra.store.manifest import hash_file


@dataclass
class Examined:
    """How much was looked at, what is wrong, and what a reader should know besides."""

    artifacts: int = 0
    records: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Examiner:
    """Looks at one reference after another; what two of them share is looked at once."""

    def __init__(self, place: Place, share: float = 1.0, draw: random.Random | None = None) -> None:
        self.place = place
        tracker = place.tracker
        self.stored = Stored(
            place.store, share, draw, lambda one: tracker.producer(one) is not None, tracker.announced
        )
        self.pages = Pages(place)
        self.shown = Shown(place.store, place.tracker, place.authority)
        self._problems: list[str] = []
        self._gone: list[str] = []
        self._unsigned: list[str] = []
        self._moved: list[str] = []
        self._adopted: list[str] = []

    def reference(self, reference: str) -> None:
        """A version or an artifact; BadInput where neither MLflow, nor the ledger, nor the store knows it."""
        try:
            found = find(self.place, reference)
        except BadInput:
            if not self._removed(reference):
                raise
        except VerificationFailed as error:
            self._problems.append(str(error))
        else:
            if found.name is not None:
                self.version(found)
            else:
                self.record(found.record)

    def holds(self, name: str, head: str) -> None:
        """A problem where no entry in the ledger of a model has this hash."""
        try:
            known = self.shown.model(name).hashes
        except VerificationFailed as error:
            self._problems.append(str(error))
            return
        if head not in known:
            self._problems.append(
                f"the ledger of {name} has no entry {head}: its end was cut off, or it was written anew"
            )

    def stated(self) -> set[tuple[str, str]]:
        """Name and number of every version in any ledger; a broken ledger is a problem."""
        found = set()
        for name in ledgers(self.place.store, self._problems):
            try:
                found |= {(name, number) for number in self.shown.model(name).versions}
            except VerificationFailed as error:
                self._problems.append(str(error))
        return found

    def version(self, found: Found) -> None:
        """A model version: its tags, its source, its run, its place in the ledger, and all behind it."""
        top = self._tree([found.record], "the record in tag resprout.record")
        if top is not None and top[-1].record.content != found.digest:
            self._problems.append(
                f"tags resprout.record and resprout.digest do not agree: record {found.record} made "
                f"{top[-1].record.content}, not {found.digest}"
            )
        report = (found.tags or {}).get("resprout.report_record")
        reported = self._tree([report], "the record in tag resprout.report_record") if report else None
        name, version = found.name or "", found.number or ""
        self._problems += self.shown.version(name, version)
        if top is not None:
            self._claims(found, top[-1], reported[-1] if reported else None)
        ended = f"models:/{name}/{version}" not in self.shown.unfinished
        seal = self.shown.seal(found.run or "", self._problems, ended)
        if seal is not None:
            self._problems += self.shown.named_seal(name, seal)
            self._problems += _of_version(seal, found)
            self._sealed(seal)
        self._look([*(top or ()), *(reported or ())], seal)

    def _claims(self, found: Found, top: Node, report: Node | None) -> None:
        """What the version claims, and where MLflow loads it from."""
        what, known = f"models:/{found.name}/{found.number}", []
        # A damaged ledger was told of with the version.
        with suppress(VerificationFailed):
            known = self.shown.model(found.name or "").locations
        self._problems += [f"{what}: {one}" for one in claims_of(self.place, found, top, report, known)]
        if stands_for(self.place, found.source or "", known) != stands_for(self.place, found.source or ""):
            self._moved.append(
                f"{what}: MLflow loads it from {found.source}, where the store was; its bytes are at "
                f"{self.place.store.uri(top.record.content)}, and `resprout relocate` tells MLflow"
            )

    def run(self, run_id: str) -> None:
        """A sealed run, its nested runs, and all that they made."""
        seal = self.shown.seal(run_id, self._problems)
        if seal is not None:
            self._sealed(seal)

    def record(self, record_id: str) -> None:
        """An artifact by its record, with all behind it."""
        nodes = self._tree([record_id], f"record {record_id}") or ()
        driver = self.place.store.driver
        # What came before an erased artifact may have been collected, and its records stay.
        lost = any(driver.head(f"manifests/{node.record.content}.json") is None for node in nodes)
        gone = self._collected(*(run for (run,) in keys.own(driver, "collected"))) if lost else ()
        self._look(nodes, None, gone)

    def _removed(self, reference: str) -> bool:
        """Whether a version or alias that MLflow does not have is in the ledger; then that is a problem."""
        name, alias, number = parts(reference)
        if not name:
            return False
        try:
            expected = self.shown.model(name)
        except VerificationFailed as error:
            self._problems.append(str(error))
            return True
        known = expected.aliases.get(alias) if alias else number if number in expected.versions else None
        if known is not None:
            self._problems.append(
                f"{reference} was removed from the registry: the ledger knows it as version {known}"
            )
        return known is not None

    def rooms(self) -> None:
        """The whole store by listings: objects that no store wrote, and entries that lead nowhere."""
        driver = self.place.store.driver
        self._problems += [
            f"{driver.uri(key)} is no object that resprout writes" for key in keys.strays(driver)
        ]
        self._problems += misplaced(self.place.store, self.stored.left_behind)

    def beside(self) -> None:
        """What made the same artifacts as what was looked at, or has its place in the cache, and so on."""
        looked: set[str] = set()
        while fresh := self.stored.seen - looked:
            looked |= fresh
            for other in sorted(self.stored.beside(fresh) - self.stored.seen):
                self.record(other)

    def result(self) -> Examined:
        """What was found so far."""
        return Examined(
            artifacts=len(self.stored.hashed),
            records=len(self.stored.seen),
            problems=list(dict.fromkeys(self._problems)),
            notes=list(self._notes()),
        )

    def _sealed(self, seal: Seal) -> None:
        said = seal.predicate
        gone = self._collected(said["run"])
        left = [record for record in said["records"] if record not in gone]
        if gone and not left:
            # All that the run made is gone, and so may MLflow's run be; its seal stays as what was.
            return
        self._problems += self.shown.run(seal)
        if not gone & {said.get("report"), said.get("export")} and said.get("report") and said.get("export"):
            self._problems += provenance_problems(
                self.place.store,
                said["export"],
                said["report"],
                said["provenance"],
                said["statement"],
                rebuild=said["resprout"] == identity.library_version("resprout"),
            )
        self._problems += self.pages.problems(said.get("name"), said.get("report"))
        self._problems += stage_run_problems(self.place.store, said["run"], said["runs"])
        self._look(self._tree(left, f"the seal of run {said['run']}") or (), seal, gone)
        if not seal.opened.signed_by:
            self._unsigned.append(f"the seal of run {said['run']}")
        if "sealed_by" in said:
            self._adopted.append(
                f"run {said['run']} died after it registered; run {said['sealed_by']} sealed it"
            )

    def _collected(self, *runs: str) -> frozenset[str]:
        """Records of sealed runs that gc stated to have freed."""
        gone: set[str] = set()
        for run_id in runs:
            try:
                stated = read_collection(self.place.store, run_id)
            except VerificationFailed as error:
                self._problems.append(str(error))
                continue
            if stated is not None:
                self._gone.append(stated.sentence)
                gone |= stated.records
        return frozenset(gone)

    def _tree(self, records: Iterable[str], named: str) -> list[Node] | None:
        """The nodes behind records, the last named one last; None, and a problem, where a link is broken."""
        try:
            return trees(self.place.store, records)
        except (BadInput, VerificationFailed) as error:
            self._problems.append(f"the lineage behind {named} is broken: {error}")
            return None

    def _look(self, nodes: Iterable[Node], seal: Seal | None, gone: Collection[str] = ()) -> None:
        there = [node for node in nodes if node.record_id not in gone]
        signed = (
            {record: [*keys, *seal.adopted_by] for record, keys in seal.predicate["records"].items()}
            if seal
            else {}
        )
        self._problems += self.stored.problems(there, signed)

    def _notes(self) -> Iterable[str]:
        if self.stored.share < 1.0:
            yield f"a sample: {self.stored.share:.0%} of the files were hashed, the others only looked up"
        yield from self.stored.erased
        yield from dict.fromkeys(self._gone)
        if self.stored.signers:
            yield f"signed by {', '.join(sorted(self.stored.signers))}"
        for run_id, when in sorted(self.shown.dated.items()):
            yield f"the seal of run {run_id} was dated {when.isoformat()} by the timestamp authority"
        if self.shown.others:
            yield f"not registered by resprout: {', '.join(sorted(self.shown.others))}"
        if self.stored.strangers:
            yield (
                f"signed by keys that are not known here: {', '.join(sorted(self.stored.strangers))}; add "
                "theirs to infra.proof.verification_keys"
            )
        yield from self._adopted
        yield from self.shown.unfinished.values()
        yield from self.stored.unfinished.values()
        yield from self.shown.anew
        yield from self.shown.adopted
        yield from self._moved
        for name, head in sorted(self.shown.heads.items()):
            yield f"ledger of {name}: {head}"
        if self._unsigned and self.stored.signers:
            yield f"unsigned, though records are signed: {', '.join(self._unsigned)}"
        if self.stored.unsigned:
            yield (
                f"{self.stored.unsigned} of {len(self.stored.seen)} records are unsigned: whoever can write "
                "store and MLflow could have written all of it anew"
            )


def _of_version(seal: Seal, found: Found) -> Iterable[str]:
    """Whether the seal of a version's run is about this version and this export."""
    said, version = seal.predicate, f"models:/{found.name}/{found.number}"
    if said.get("registered") != version:
        yield f"the seal of run {said['run']} is about {said.get('registered')}, not {version}"
    if "sealed_by" not in said and said.get("export") != found.record:
        yield f"the seal of run {said['run']} is about the export of record {said.get('export')}"
    if said.get("verdict") == "failed":
        yield f"the seal of run {said['run']} says that the gate was not passed, but {version} is registered"


def examine(place: Place, reference: str, share: float = 1.0, head: str | None = None) -> Examined:
    """What is wrong with what a reference names: a version, an artifact, a record, a run or a stage's run.

    `head` is the hash of an entry that the ledger of the version's model must hold.
    """
    examiner = Examiner(place, share, random.SystemRandom())
    if RUN_ID.match(reference):
        tags = place.tracker.run(reference).data.tags
        parent = tags.get("mlflow.parentRunId")
        examiner.run(parent or reference)
        if "resprout.record" in tags:
            examiner.record(tags["resprout.record"])
    else:
        examiner.reference(reference)
    if head is not None:
        examiner.holds(parts(reference)[0], head)
    return examiner.result()


def examine_all(place: Place, share: float = 1.0) -> Examined:
    """What is wrong anywhere: every version that resprout registered, every ledger, every sealed run."""
    return _everything(place, share).result()


def examine_unsigned(place: Place) -> tuple[Examined, set[str]]:
    """What is wrong anywhere but for missing signatures, and the records that are to be signed with the rest.

    Signatures that are there must hold. From now on the store takes what nobody signed as it is.
    """
    place.store.signer.adopts()
    examiner = _everything(place)
    if not examiner.result().problems:
        examiner.beside()
    return examiner.result(), examiner.stored.seen


def _everything(place: Place, share: float = 1.0) -> Examiner:
    examiner = Examiner(place, share, random.SystemRandom())
    here = {(one.name, str(one.version)): RECORD in one.tags for one in place.tracker.versions()}
    stated = examiner.stated()
    # What lost its tag, or is gone from the registry, is in the ledger all the same.
    for name, number in sorted({key for key, tagged in here.items() if tagged} | stated):
        examiner.reference(f"models:/{name}/{number}")
    sealed = {key.removeprefix("seals/").removesuffix(".json") for key in place.store.driver.list("seals/")}
    unfinished = {
        str(one.run_id)
        for one in place.tracker.versions()
        if f"models:/{one.name}/{one.version}" in examiner.shown.unfinished
    }
    for run_id in sorted(sealed | examiner.shown.concluded() - unfinished):
        examiner.run(run_id)
    examiner.rooms()
    return examiner


REPORTS = "reports"
LOGGED = "report/"
"""Folder of a run's files in MLflow that holds its report."""
CONFIG = "config.yaml"
"""File of the page that names folders of this machine, and so is another one in the artifact."""


class Pages:
    """Checks the copies of reports below a home; each name once."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._done: set[str] = set()

    def problems(self, name: str | None, report: str | None) -> Iterator[str]:
        """What is wrong with the page of the runs called `name`, of which `report` is one record."""
        if name is None or report is None or name in self._done or unsafe(name):
            return
        self._done.add(name)
        folder = self.place.home / REPORTS / name
        if not folder.is_dir():
            return
        found = dict(_files(folder))
        # A later run of the same name put its own there.
        if (
            found
            and not _fit(found, self._of_seals(name))
            and not _fit(found, self._files_of(self._of_mlflow(name)))
        ):
            yield f"the report page in {folder} was changed: no run of {name} wrote it so"

    def _files_of(self, digests: list[str]) -> Iterator[dict[str, str]]:
        for digest in dict.fromkeys(digests):
            try:
                yield {entry.path: entry.sha256 for entry in self.place.store.manifest(digest).files}
            except (BadInput, VerificationFailed):
                continue

    def _of_seals(self, name: str) -> Iterator[dict[str, str]]:
        """By file of the report its SHA-256, of each sealed run of this name; gc leaves seals."""
        store = self.place.store
        for (run,) in keys.own(store.driver, "seals"):
            try:
                seal = read_seal(store, run)
            except VerificationFailed:
                # Said where its run is looked at.
                continue
            if seal is not None and seal.predicate.get("name") == name:
                files = seal.predicate["runs"].get(run, {}).get("files", {})
                yield {
                    path.removeprefix(LOGGED): entry["sha256"]
                    for path, entry in files.items()
                    if path.startswith(LOGGED)
                }

    def _of_mlflow(self, name: str) -> list[str]:
        """A run that was killed before its seal had put its page there already."""
        found = search.runs(self.place.tracker, "tags.`resprout.report` LIKE '%'")
        return [run.data.tags["resprout.report"] for run in found if run.info.run_name == name]


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """Path and SHA-256 of the files of a page; what is no plain file has no hash."""
    for path in sorted(folder.iterdir()):
        if path.name == CONFIG:
            continue
        try:
            plain_status(folder, path.name)
            yield path.name, hash_file(path, path.name).sha256
        except (FileNotFoundError, VerificationFailed):
            yield path.name, ""


def _fit(found: dict[str, str], artifacts: Iterator[dict[str, str]]) -> bool:
    """Whether one of the artifacts has all these files; others beside them are the user's own."""
    return any(
        found.keys() & artifact.keys()
        and all(found[path] == artifact[path] for path in found.keys() & artifact)
        for artifact in artifacts
    )
