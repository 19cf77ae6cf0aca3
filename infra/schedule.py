"""Whether a schedule can be kept: a cron expression that fires, in a time zone that exists."""

from __future__ import annotations

import difflib
import zoneinfo
from datetime import UTC, datetime

from cronsim import CronSim, CronSimError

from resprout.configs.errors import BadInput

FIELDS = 5
NO_PLACES = {"Factory", "localtime"}
"""Names of zones that stand for "not set", and for the machine's own."""
EXAMPLE = '"0 2 * * 1" is Mondays at 2:00'


def check_schedule(cron: str | None, timezone: str | None) -> None:
    """BadInput where the expression is malformed or never fires, or the zone is unknown or without use."""
    zones = zoneinfo.available_timezones() - NO_PLACES
    if timezone is not None and timezone not in zones:
        near = difflib.get_close_matches(timezone, zones, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "give one like Europe/Berlin"
        raise BadInput(f"there is no time zone '{timezone}'; {hint}")
    if cron is None:
        if timezone is not None:
            raise BadInput(f"the time zone {timezone} was given without --cron; add it, say {EXAMPLE}")
        return
    fields = cron.split()
    if len(fields) != FIELDS:
        raise BadInput(f"the cron expression '{cron}' has not five fields; {EXAMPLE}")
    if fault := _fault(fields):
        # The library refuses a day that its month never has as it does one that no month has.
        if _fault([*fields[:3], "*", fields[4]]) is None and _fault([*fields[:2], "*", *fields[3:]]) is None:
            raise BadInput(f"the cron expression '{cron}' never fires: there is no such date; {EXAMPLE}")
        raise BadInput(f"the cron expression '{cron}' is malformed ({fault}); {EXAMPLE}")


def _fault(fields: list[str]) -> str | None:
    try:
        next(CronSim(" ".join(fields), datetime.now(UTC)))
    except CronSimError as error:
        return str(error)
    except StopIteration:
        return "no such day"
    return None
