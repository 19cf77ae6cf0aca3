"""The state of a training as safetensors and JSON, from which it goes on exactly: no pickle, no path."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resprout.configs.errors import BadInput
from resprout.infra.store.stored_json import parse_json
from resprout.tasks.core.job import Checkpoints
from resprout.tasks.recover.growth import Growth
from resprout.tasks.recover.sharding import shared_like, whole

TENSORS, VALUES = "state.safetensors", "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
"""Names of the moments: the first two are AdamW's, the last is Muon's."""
WEIGHTS, BEST, GENERATOR, CUDA_GENERATOR = "weight", "best", "generator", "cuda_generator"


@dataclass
class State:
    """All that a training of so many `steps` knows, beside its data, which config and seed make again."""

    parameters: Mapping[str, Tensor]
    """Trained parameters, by name."""
    optimizer: Any
    scaler: Any
    """Of gradients in float16; None where they are not scaled."""
    steps: int
    step: int = 0
    """Steps that are done."""
    seconds: float = 0.0
    """Training time so far, over all restarts."""
    micro_batch_tokens: int = 0
    """Places that are computed at once; 0 where that is not known yet."""
    entries: list[dict[str, float]] = field(default_factory=list)
    """The history of the steps."""
    looks: list[float] = field(default_factory=list)
    """Losses on the held-out slice."""
    best: dict[str, Tensor] | None = None
    """Weights at the best look, where they are kept."""
    growth: Growth | None = None
    """Of the ranks of adapters, where they grow."""

    def write(self, folder: Path, main: bool = True) -> None:
        """Weights, moments and generators as tensors; steps, losses and the scaler's state as JSON.

        Of several processes all call this together, and the `main` one writes what all hold.
        """
        from safetensors.torch import save_file

        tensors, counts = dict[str, Tensor](), dict[str, float]()
        for name, parameter in self.parameters.items():
            known = self.optimizer.state[parameter]
            tensors[f"{WEIGHTS}.{name}"] = parameter
            tensors |= {f"{moment}.{name}": known[moment] for moment in MOMENTS if moment in known}
            if "step" in known:
                counts[name] = float(known["step"])
        tensors |= {f"{BEST}.{name}": best for name, best in (self.best or {}).items()}
        kept = dict[str, Tensor]()
        for name, each in tensors.items():
            full = whole(each.detach())
            if main:
                kept[name] = full.cpu().contiguous()
        generators = _of_all(self.generators())
        if not main:
            return
        save_file(kept | generators, folder / TENSORS)
        values = {
            "step": self.step,
            "steps": self.steps,
            "seconds": self.seconds,
            "processes": _processes(),
            "micro_batch_tokens": self.micro_batch_tokens,
            "entries": self.entries,
            "looks": self.looks,
            "optimizer_steps": counts,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "growth": None if self.growth is None else self.growth.values(),
        }
        (folder / VALUES).write_text(json.dumps(values, sort_keys=True), encoding="utf-8")

    @staticmethod
    def steps_in(folder: Path) -> int:
        """The number of steps of the training whose state is there."""
        return int(parse_json((folder / VALUES).read_bytes(), VALUES)["steps"])

    def read(self, folder: Path) -> None:
        """Take over what `write` wrote.

        Raises:
            BadInput: it is of a training with other parameters or steps.
        """
        from safetensors.torch import load_file

        tensors = load_file(folder / TENSORS)
        values = parse_json((folder / VALUES).read_bytes(), VALUES)
        named = {name.removeprefix(f"{WEIGHTS}.") for name in tensors if name.startswith(f"{WEIGHTS}.")}
        if named != set(self.parameters) or values["steps"] != self.steps:
            raise BadInput(
                f"the checkpoint is of a training of {len(named)} tensors in {values['steps']} steps, not of "
                f"one of {len(self.parameters)} in {self.steps}; run with the config that it was made with, "
                "or delete it by `resprout gc`"
            )
        if values["processes"] != _processes():
            raise BadInput(
                f"the checkpoint is of a training in {values['processes']} processes, not in {_processes()}, "
                "which draws other numbers; give recover.devices.processes as it was, or delete it by "
                "`resprout gc`"
            )
        self.put({name: tensors[f"{WEIGHTS}.{name}"] for name in named})
        for name, parameter in self.parameters.items():
            kept = [moment for moment in MOMENTS if f"{moment}.{name}" in tensors]
            known = {moment: shared_like(tensors[f"{moment}.{name}"], parameter) for moment in kept}
            if name in values["optimizer_steps"]:
                known["step"] = torch.tensor(values["optimizer_steps"][name], device=self._device)
            self.optimizer.state[parameter] = known
        if any(name.startswith(f"{BEST}.") for name in tensors):
            self.best = {
                name: shared_like(tensors[f"{BEST}.{name}"], each) for name, each in self.parameters.items()
            }
        if self.scaler is not None:
            self.scaler.load_state_dict(values["scaler"])
        own = f".{_rank()}" if _rank() else ""
        names = (GENERATOR, CUDA_GENERATOR)
        self.draw_from({name: tensors[name + own] for name in names if name + own in tensors})
        if self.growth is not None:
            self.growth.take(values["growth"])
        self.step, self.seconds = values["step"], values["seconds"]
        self.micro_batch_tokens = values["micro_batch_tokens"]
        self.entries, self.looks = values["entries"], values["looks"]

    def generators(self) -> dict[str, Tensor]:
        """The states of this process's random number generators."""
        return {GENERATOR: torch.get_rng_state()} | self._cuda_generator()

    def draw_from(self, generators: Mapping[str, Tensor]) -> None:
        """Go on drawing from these states."""
        torch.set_rng_state(generators[GENERATOR])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(generators[CUDA_GENERATOR])

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters of the same names."""
        for name, parameter in self.parameters.items():
            parameter.copy_(shared_like(values[name], parameter))

    def _cuda_generator(self) -> dict[str, Tensor]:
        return {CUDA_GENERATOR: torch.cuda.get_rng_state()} if self._device.type == "cuda" else {}

    @property
    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device


@contextmanager
def opened(checkpoints: Checkpoints | None) -> Iterator[Path | None]:
    """The folder of the newest checkpoint while the context is open; None where there is none."""
    if checkpoints is None:
        yield None
        return
    with checkpoints.latest() as folder:
        yield folder


def seconds_before(checkpoints: Checkpoints | None) -> float:
    """Training time that went into the newest checkpoint; 0 where there is none."""
    with opened(checkpoints) as found:
        path = None if found is None else found / VALUES
        return float(parse_json(path.read_bytes(), VALUES)["seconds"]) if path and path.exists() else 0.0


def save(state: State, checkpoints: Checkpoints, main: bool = True) -> None:
    """Keep the state as the newest checkpoint; of several processes all call this, and the main one keeps."""
    with tempfile.TemporaryDirectory(prefix="resprout-checkpoint-") as folder:
        state.write(Path(folder), main)
        if main:
            checkpoints.save(Path(folder), state.step)


def _processes() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _of_all(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of all processes, those of the first under their own names, the others' with their rank."""
    found = dict(own)
    for name, tensor in own.items() if _processes() > 1 else ():
        gathered = [torch.empty_like(tensor) for _ in range(_processes())]
        torch.distributed.all_gather(gathered, tensor)
        found |= {f"{name}.{rank}" if rank else name: one for rank, one in enumerate(gathered)}
    return found
