"""Settings of the acquire stages: a section of the run config with the source it was pinned to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resprout.configs.schema import DataSource, ModelConfig
from resprout.infra.licences import Credit
from resprout.tasks.acquire.choose import ENDINGS
from resprout.tasks.acquire.source import Context, Pinned, Purpose, Wanted, pin


@dataclass(frozen=True)
class AcquireModel:
    """A model and its exact source; `key_data` holds what decides the bytes, no places, no users.

    `role` is what the run needs it for; an "encoder" needs no head, so its weights are not checked for one.
    """

    config: ModelConfig
    pinned: Pinned
    context: Context
    role: str = "model"

    @classmethod
    def pin(cls, config: ModelConfig, context: Context, role: str = "model") -> AcquireModel:
        """Resolve `config.source` now; BadInput or Transient where that fails."""
        return cls(config, pin(config.source, wanted_of(config, role), context), context, role)

    @property
    def wanted(self) -> Wanted:
        """The files asked of the source."""
        return wanted_of(self.config, self.role)

    @property
    def converts(self) -> bool:
        """Whether the weights are rewritten, in `config.dtype`, instead of copied."""
        endings = ENDINGS["safetensors"]
        return not any(file.path.endswith(endings) for file in self.pinned.files)

    def key_data(self) -> dict[str, Any]:
        return {
            "source": self.pinned.digest,
            "role": self.role,
            **({"dtype": self.config.dtype} if self.converts else {}),
        }

    def origin(self) -> dict[str, Any]:
        return _origin(self.config.source, self.pinned)

    def licence_note(self) -> str | None:
        return self.config.licence or self.pinned.licence

    def credits(self, role: str) -> list[Credit]:
        return [Credit(role, self.name, self.licence_note())]

    @property
    def name(self) -> str:
        return _name(self.pinned)


@dataclass(frozen=True)
class AcquireData:
    """Data sources in their order, each with what it was pinned to."""

    sources: tuple[tuple[DataSource, Pinned], ...]
    context: Context

    @classmethod
    def pin(cls, sources: Sequence[DataSource], context: Context) -> AcquireData:
        """Resolve every source now; BadInput or Transient where that fails."""
        return cls(
            tuple((source, pin(source.source, Wanted("data"), context)) for source in sources), context
        )

    def key_data(self) -> dict[str, Any]:
        return {
            "sources": [
                {
                    "source": pinned.digest,
                    "label": pinned.label,
                    **source.model_dump(mode="json", exclude={"source", "licence"}),
                }
                for source, pinned in self.sources
            ]
        }

    def origin(self) -> dict[str, Any]:
        return {
            "sources": [
                {**_origin(source.source, pinned), "licence": source.licence or pinned.licence}
                for source, pinned in self.sources
            ]
        }

    def licence_note(self) -> str | None:
        named = sorted({source.licence or pinned.licence or "unknown" for source, pinned in self.sources})
        return ", ".join(named) if named != ["unknown"] else None

    def credits(self, role: str) -> list[Credit]:
        return [
            Credit(role, _name(pinned), source.licence or pinned.licence) for source, pinned in self.sources
        ]


@dataclass(frozen=True)
class AcquireTask:
    """An evaluation task: its rows and solved examples, and the settings of its lm-eval YAML beside them."""

    data: AcquireData
    settings: Mapping[str, Any]
    examples: AcquireData | None = None
    code: Mapping[str, Any] | None = None
    """Python code that the YAML names, where it is the user's own and that code is trusted."""

    @property
    def whole(self) -> AcquireData:
        """Rows and examples as one."""
        more = self.examples.sources if self.examples is not None else ()
        return AcquireData(self.data.sources + more, self.data.context)

    def key_data(self) -> dict[str, Any]:
        examples = {} if self.examples is None else {"examples": self.examples.key_data()["sources"]}
        return {**self.data.key_data(), **examples, "settings": dict(self.settings)}

    def origin(self) -> dict[str, Any]:
        code = {} if self.code is None else {"trusted_code": dict(self.code)}
        return {**self.whole.origin(), **code}

    def licence_note(self) -> str | None:
        return self.whole.licence_note()


def wanted_of(config: ModelConfig, role: str) -> Wanted:
    """The files asked of the source of a model with this role."""
    purpose: Purpose = "encoder" if role == "encoder" else "model"
    return Wanted(purpose, config.allow_pickle, config.trust_remote_code)


def _name(pinned: Pinned) -> str:
    """Name of the source on every machine: its address, or the name of its file or folder."""
    return pinned.label if pinned.uri.startswith("file:") else pinned.uri


def _origin(given: str, pinned: Pinned) -> dict[str, Any]:
    return {
        "given": given,
        "uri": pinned.uri,
        "bytes": pinned.total_bytes,
        "licence": pinned.licence,
        **pinned.identity,
    }
