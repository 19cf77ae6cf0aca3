"""MLflow's tables and the statements in the store that speak of them, as they were at one moment."""

from __future__ import annotations

import shutil
import time
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from resprout.configs.errors import Transient
from resprout.infra.retention.database import Database
from resprout.infra.retention.run_files import lines
from resprout.infra.store.driver import Driver
from resprout.infra.store.lease import LeaseLockManager

LEDGERS = "registry/"
STATEMENTS = (LEDGERS, "timestamps/", "seals/")
"""Rooms of the store whose objects say what MLflow holds; each before those that its objects need."""
TRIES = 60
PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class Moment:
    """Rows of each table, and the statements that were there before."""

    rows: dict[str, int]
    statements: Set[str]


def take(database: Database, driver: Driver, locks: LeaseLockManager, folder: Path) -> Moment:
    """Dump the tables into the new `folder`.

    A statement follows what it speaks of, so one that was there before the dump speaks of rows that are in
    it. The other way round a version is in MLflow before its ledger entry is in the store: the dump counts
    only where no run was between the two.

    Raises:
        Transient: runs registered all the time.
    """
    for left in reversed(range(TRIES)):
        folder.mkdir()
        statements = {key for room in STATEMENTS for key in driver.list(room)}
        rows = database.dump(folder)
        names = [row["name"] for row in lines(folder, "registered_models")]
        entries = {key for key in statements if key.startswith(LEDGERS)}
        busy = any(locks.is_locked(f"register {name}") for name in names)
        if not busy and entries == set(driver.list(LEDGERS)):
            return Moment(rows, statements)
        shutil.rmtree(folder)
        if left:
            time.sleep(PAUSE_SECONDS)
    raise Transient(
        f"runs were registering models each of the {TRIES} times that the backup looked; run it again later"
    )
