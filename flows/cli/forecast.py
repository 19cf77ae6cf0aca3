"""A forecast in words: what is found, what would run, and the time, memory, disk and money of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100
"""Columns of a page; of a narrower terminal all of its own."""
MINUTE, HOUR = 60, 3600
FEW = 10
"""Seconds of work below which the start of the run takes as long as its stages."""


def page() -> Console:
    """Stdout, folded at `WIDTH` columns."""
    from rich.console import Console

    found = Console(highlight=False)
    return Console(highlight=False, width=min(found.width, WIDTH) if found.is_terminal else WIDTH)


def sentence(found: Mapping[str, Any], before: str = "") -> str:
    """The summary of a forecast (`flows.dry_run.summary`) in one sentence."""
    to_run, stages = found["would_run"], found["found"] + found["would_run"]
    if not to_run:
        return f"{before}all {stages} stages found, nothing would run"
    takes = [f"{found['found']} of {stages} stages found, {to_run} would run"]
    if found["seconds"] is not None:
        long = found["seconds"] >= FEW
        takes.append(f"about {duration(found['seconds'])}" if long else "a few seconds")
    elif found["seconds_known"] >= FEW:
        takes.append(f"at least {duration(found['seconds_known'])}")
    if found["memory_bytes"]:
        takes.append(f"at most {size(found['memory_bytes'])} of memory")
    if found["disk_bytes"]:
        takes.append(f"{size(found['disk_bytes'])} of disk")
    if found["money"] is not None:
        takes.append(f"{money(found['money'])} at {found['price_per_hour']:.2f} an hour")
    return f"{before}{', '.join(takes)}{_unknown(found)}"


def _unknown(found: Mapping[str, Any]) -> str:
    """A clause that names the stages without a predicted time, for which there is no price either."""
    if not found["unknown"]:
        return ""
    first, *rest = found["unknown"]
    more = f" and {len(rest)} more" if rest else ""
    price = " and price" if found["price_per_hour"] is not None else ""
    known = "of the rest " if found["seconds_known"] >= FEW else ""
    return f"; time{price} {known}not known: no run here tells of {first}{more} yet"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 40 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 1:
        return "0 s" if not seconds else "1 s"
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"


def size(count: int | None) -> str:
    """Bytes in kB, MB or GB."""
    if count is None:
        return "?"
    units = ((1e8, 1e9, "GB"), (1e5, 1e6, "MB"))
    return next(
        (f"{count / of:.1f} {unit}" for least, of, unit in units if count >= least), f"{count / 1e3:.0f} kB"
    )


def money(amount: float) -> str:
    """An amount with two decimals, of less than a hundredth with all that matter."""
    return f"{amount:.2f}" if amount >= 0.01 or not amount else f"{amount:.4f}"
