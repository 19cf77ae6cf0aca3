"""Push formats of a run to the model hub: what is said of them there, and whether they may be given away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from resprout.configs.errors import GateNotPassed
from resprout.configs.result import PushResult
from resprout.flows.formats import Exported
from resprout.flows.inputs import SHAPING
from resprout.infra.licences import Credit, check_redistribution
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.push.hub import push, repository_of, require_token

SHORT = 12


def check_push(address: str, credits: Iterable[Credit], failed: Sequence[str] = ()) -> None:
    """Refuse before anything is made: no address, no token, a licence that forbids it, or a failed gate.

    Raises:
        BadInput: all but the last.
        GateNotPassed: `failed` are bounds of the gate that the model is outside of.
    """
    repository_of(address)
    check_redistribution(one for one in credits if one.role in SHAPING)
    if failed:
        raise GateNotPassed(f"the gate is not passed: {', '.join(failed)}; nothing is pushed")
    require_token()


def push_formats(
    store: ArtifactStore, formats: Sequence[Exported], address: str, run: str, private: bool
) -> PushResult:
    """Push the formats, the first at the root and others in folders of their names, in one commit.

    `run` names the run in the commit's message.
    """
    first = formats[0]
    about = "\n".join(f"{one.format}: export {one.digest}, record {one.record}" for one in formats)
    with ExitStack() as opened:
        content = {one.digest: opened.enter_context(store.open(one.digest)) for one in formats}
        folders = {
            one.folder if place else "": content[one.digest] / one.folder for place, one in enumerate(formats)
        }
        message = f"{run}: export {first.digest[:SHORT]} by resprout"
        found = push(folders, address, first.digest, message, about, private)
    return PushResult(to=found.to, url=found.url, changed=found.changed)
