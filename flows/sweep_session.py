"""State of one sweep: its variants (checked before any starts), result and progress display.

Apart from the flow, since importing that imports Prefect, which must know its server by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from resprout.configs.errors import BadInput, DoesNotFit, ResproutError
from resprout.configs.infrastructure import InfraConfig
from resprout.configs.load import Loaded, travelling
from resprout.configs.sweep import SweepConfig, SweepResult, Variant, VariantResult
from resprout.flows.check import check
from resprout.flows.session import NoDisplay, Session
from resprout.tasks.core.run import Display


def _no_display(name: str) -> Display:
    return NoDisplay()


@dataclass
class SweepSession:
    """State of one call of a sweep: variants, result, progress display."""

    config: SweepConfig
    base: Loaded
    """Config whose `infra` and home all variants share."""
    variants: list[Variant]
    """Those of a search are added as they are proposed."""
    result: SweepResult
    unfit: dict[str, str] = field(default_factory=dict)
    """Why a variant is left out, by its name."""
    display: Callable[[str], Display] = _no_display
    """The display of a variant by its name, where the variant runs in this process."""
    ended: Callable[[VariantResult], None] = lambda result: None
    """Called with each variant that ended."""
    running: list[Session] = field(default_factory=list)
    interrupted: bool = False
    """Ctrl-C was pressed, or another signal ends the process."""

    @property
    def to_run(self) -> list[Variant]:
        """The variants that fit the model."""
        return [variant for variant in self.variants if variant.name not in self.unfit]

    def varied(self) -> dict[str, Any]:
        """The keys that variants set, each with its values, in order; of a search those it may take."""
        if self.config.search is not None:
            return self.config.search.optuna.model_dump(mode="json")["over"]
        found: dict[str, list[Any]] = {}
        for variant in self.to_run:
            for key, value in variant.settings.items():
                values = found.setdefault(key, [])
                values += [] if value in values else [value]
        return found

    def loaded(self, name: str) -> Loaded:
        """The config of a variant that runs in this process."""
        (found,) = (variant.loaded for variant in self.variants if variant.name == name)
        return unsplit(found, found.config.infra)

    def interrupt(self) -> None:
        """Let the variants of this process stop at their next step, also one that only begins."""
        self.interrupted = True
        for session in self.running:
            session.interrupted = True


def prepared(config: SweepConfig, variants: list[Variant], strict: bool = False) -> SweepSession:
    """A loaded sweep with every variant checked; those that do not fit the model are left out with a reason.

    Raises:
        BadInput: naming each variant that no model could run, where no variant fits the model, or with
            `strict` where one does not.
    """
    faults, unfit = [], dict[str, str]()
    targets = [one.loaded.config.push.to for one in variants if one.loaded.config.push is not None]
    if targets and (config.search is not None or len(set(targets)) < len(targets)):
        raise BadInput(
            f"variants of a sweep would push over one another to {targets[0]}; leave push out, and push the "
            "best by `resprout export REF --push`"
        )
    # A search may find what the base as it is does not: then the base need not fit.
    for variant in variants if config.search is None else ():
        try:
            check(variant.loaded)
            travelling(variant.loaded)
        except DoesNotFit as error:
            unfit[variant.name] = str(error)
        except ResproutError as error:
            faults.append(f"variant {variant.name}: {error}")
    if faults or (unfit and len(unfit) == len(variants)) or (strict and unfit):
        faults += [f"variant {name}: {reason}" for name, reason in unfit.items()]
        raise BadInput("; ".join(faults))
    result = SweepResult(status="failed", exit_code=1, name=config.name, variants=[])
    return SweepSession(
        config, variants[0].loaded, [] if config.search is not None else variants, result, unfit
    )


def fault(variant: Variant) -> str | None:
    """Why a variant cannot run, or no model that it names fits it; None where it can."""
    try:
        check(variant.loaded)
        travelling(variant.loaded)
    except ResproutError as error:
        return str(error)
    return None


def unsplit(loaded: Loaded, infra: InfraConfig) -> Loaded:
    """The config at another place, where its stages are not shared out."""
    whole = infra.model_copy(update={"shards": 1})
    return replace(loaded, config=loaded.config.model_copy(update={"infra": whole}))
