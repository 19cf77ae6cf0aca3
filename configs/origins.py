"""Check the source of a model version against the prefixes that a rule accepts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):(.*)$", re.DOTALL)


@dataclass(frozen=True)
class Origin:
    """An address in parts: scheme (none for a folder), host or bucket, and the segments of its path."""

    scheme: str
    host: str
    path: tuple[str, ...]

    @classmethod
    def parse(cls, address: str) -> Origin:
        """The parts of an address in normal form; ValueError for one that has several readings."""
        if "\\" in address or any(ord(char) < 32 for char in address):
            raise ValueError("holds a backslash or a control character")
        found = SCHEME.match(address)
        scheme, rest = (found[1].lower(), found[2]) if found else ("", address)
        host = ""
        if scheme and rest.startswith("//"):
            host, _, rest = rest[2:].partition("/")
        elif not scheme and not rest.startswith("/"):
            raise ValueError("is relative")
        path = tuple(part for part in rest.split("/") if part not in ("", "."))
        # Some servers decode an address once more than others.
        decoded = unquote(unquote(rest)).replace("\\", "/").split("/")
        if ".." in path or ".." in decoded:
            raise ValueError("leads upwards ('..')")
        return cls(scheme, host, path)

    @classmethod
    def accepted(cls, prefix: str) -> Origin:
        """The same of a prefix in a rule; ValueError says what is wrong with it."""
        try:
            found = cls.parse(prefix)
        except ValueError as error:
            raise ValueError(
                f"the source '{prefix}' {error}; give a scheme and prefix such as s3://models/, "
                "mlflow-artifacts:/ or models:/, or an absolute folder"
            ) from None
        if any(char in prefix for char in "*?"):
            raise ValueError(f"the source '{prefix}' is a pattern; give a prefix, which holds all below it")
        return found

    def holds(self, address: str) -> bool:
        """Whether `address` is this one or lies below it; a prefix of a scheme alone holds all of it."""
        try:
            other = Origin.parse(address)
        except ValueError:
            return False
        if self.scheme != other.scheme:
            return False
        if self.scheme and not self.host and not self.path:
            return True
        return self.host == other.host and other.path[: len(self.path)] == self.path
