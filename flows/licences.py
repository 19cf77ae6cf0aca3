"""The licences of a run's sources, held against the policy before anything expensive begins."""

from __future__ import annotations

from collections.abc import Iterable

from resprout.configs.errors import BadInput
from resprout.configs.schema import LicencesConfig
from resprout.infra.licences import Credit, findings


def check_licences(policy: LicencesConfig, credits: Iterable[Credit]) -> list[str]:
    """A sentence for each source that the policy warns of; BadInput names all that it denies."""
    found = findings(policy, credits)
    denied = [str(one) for one in found if one.rule == "deny"]
    if denied:
        raise BadInput(
            f"{'; '.join(denied)}: give another source, state its licence by `licence:` beside the source "
            "where the files do not name it, or change infra.licences"
        )
    return [str(one) for one in found]
