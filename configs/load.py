"""Load a run config: YAML, then RESPROUT_* environment, then key=value; every fault is reported at once."""

from __future__ import annotations

import copy
import difflib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, SecretStr, ValidationError

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import InfraConfig, without_credentials
from resprout.configs.near_misses import INSTEAD
from resprout.configs.schema import RunConfig
from resprout.configs.suites import ENDINGS, changed, named_suite, shipped_suite

PREFIX = "RESPROUT_"
RESERVED = {"RESPROUT_HOME"}
MOST_VALUES = 100_000
MOST_BITS = 1024
"""Of a whole number in a config: what a float can hold."""
TRAVEL = ("store", "mlflow", "prefect", "proof")
"""Sections of the infrastructure that a worker needs."""
IN_YAML = {
    "valid tuple": "list",
    "tuple should": "list should",
    "valid dictionary": "mapping",
    " after validation": "",
}
"""Names of Python's types, and what they are called in YAML."""
TYPES = {"int", "float", "str", "constrained-int"}  # in a fault's location, where a key may have several
REMOTE = re.compile(r"[a-z-]+:/?")
"""Begins an address that is no path."""
VARIABLE = re.compile(r"^\$\{([A-Za-z_][A-Za-z0-9_]*)\}$")


@dataclass(frozen=True)
class Loaded:
    """A config and where it came from: `path` of the YAML, `base` for relative paths, `home` for data.

    `infra` is that section as plain data in which ${VARIABLE} stands for each secret, so that it can travel.
    """

    config: RunConfig
    path: Path
    base: Path
    home: Path
    infra: dict[str, Any]


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise BadInput(f"line {line}: key '{key}' is given twice; keep one of them")
            seen.add(key)
        return super().construct_mapping(node, deep)


def load(path: Path, overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> Loaded:
    """The checked config in `path`; `overrides` are "dotted.key=value". Raises BadInput naming each fault."""
    path = path.expanduser()
    return load_data(read_yaml(path), path, overrides, environ)


def load_data(
    data: dict[str, Any],
    path: Path,
    overrides: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Loaded:
    """The checked config in a mapping that `read_yaml` or `document` gave; `path` says where it is from."""
    environ = os.environ if environ is None else environ
    data = _unshared(data, itertools.count())
    if "base" in data and {"grid", "list"} & data.keys():
        raise BadInput(f"{path} is a sweep of run configs; give it to `resprout sweep`, or its base here")
    _refuse_plain_secrets(data)
    base = path.resolve().parent
    _read_suites(data, base)
    _assign_variables(data, environ)
    _override(data, overrides, base)
    _read_suites(data, base)
    infra = copy.deepcopy(data.get("infra") or {})
    _fill_variables(data, environ)
    try:
        config = RunConfig.model_validate(data)
    except ValidationError as error:
        raise BadInput(explain(error, str(path))) from None
    return Loaded(config, path, base, home_of(config.infra, base, environ), infra)


def document(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The mapping in `path` with overrides, as it can be kept and sent: secrets still as ${VARIABLE}."""
    data, base = read_yaml(path.expanduser()), path.expanduser().resolve().parent
    _refuse_plain_secrets(data)
    _read_suites(data, base)
    _override(data, overrides, base)
    _read_suites(data, base)
    return data


def _override(data: dict[str, Any], overrides: Iterable[str], base: Path) -> None:
    """Set what the key=value in `overrides` name."""
    for override in overrides:
        key, eq, text = override.partition("=")
        if not eq or not key:
            raise BadInput(f"'{override}' is not key=value; write for example prune.target.params_ratio=0.8")
        keys = key.split(".")
        if _is_secret(keys) and not VARIABLE.match(text):
            raise BadInput(
                f"{key}: a secret on the command line can be read by others; put it in an environment "
                f"variable and write {key}='${{ITS_NAME}}'"
            )
        value = _found_here(_value(text, override), keys[-1], base)
        _refuse_plain_secrets(value, tuple(keys))
        _assign(data, keys, value, override)


def _found_here(value: Any, key: str, base: Path) -> Any:
    """The value with each `source` that lies in the current folder, and not in `base`, as its whole path."""
    if isinstance(value, dict):
        return {name: _found_here(one, name, base) for name, one in value.items()}
    if isinstance(value, list):
        return [_found_here(one, key, base) for one in value]
    if key != "source" or not isinstance(value, str) or not value or REMOTE.match(value):
        return value
    path = Path(value).expanduser()
    return str(path.absolute()) if path.exists() and not (base / path).exists() else value


def _read_suites(data: dict[str, Any], base: Path) -> None:
    """Write out the suites that the config names, those of one's own from YAML files beside it."""
    evaluate = data.get("evaluate")
    found = evaluate.get("suites") if isinstance(evaluate, dict) else None
    suites: list[Any] = found if isinstance(found, list) else []
    for index, given in enumerate(suites):
        name = named_suite(given)
        if name is None:
            continue
        if name.endswith(ENDINGS):
            suites[index] = changed(_read_suite(base / Path(name).expanduser(), base), given)
        else:
            with suppress(ValueError):  # which the schema says of an unknown one
                suites[index] = shipped_suite(given)


def _read_suite(path: Path, base: Path) -> dict[str, Any]:
    """The suite in a YAML file; files that it names lie beside it."""
    suite = read_yaml(path)
    folder = path.parent
    for task in suite["tasks"] if isinstance(suite.get("tasks"), list) and folder != base else ():
        if isinstance(task, dict):
            if str(task.get("task", "")).endswith(ENDINGS):
                task["task"] = str(folder / Path(task["task"]).expanduser())
            for data in (one for one in (task.get("data"), task.get("examples")) if isinstance(one, dict)):
                source = data.get("source")
                if isinstance(source, str) and not REMOTE.match(source):
                    data["source"] = str(folder / Path(source).expanduser())
    return suite


def load_infra(path: Path | None, environ: Mapping[str, str] | None = None) -> tuple[InfraConfig, Path]:
    """Infrastructure and data folder of a config, else of the environment and the current folder.

    A config that holds nothing but `infra` will do.
    """
    environ = os.environ if environ is None else environ
    data = read_yaml(path.expanduser()) if path is not None else {}
    if path is not None and set(data) != {"infra"}:
        loaded = load_data(data, path.expanduser(), (), environ)
        return loaded.config.infra, loaded.home
    _refuse_plain_secrets(data)
    _assign_variables(data, environ, f"{PREFIX}INFRA__")
    _fill_variables(data, environ)
    try:
        infra = InfraConfig.model_validate(data.get("infra") or {})
    except ValidationError as error:
        raise BadInput(explain(error, str(path or "environment"), ("infra",))) from None
    base = path.expanduser().resolve().parent if path is not None else Path.cwd()
    return infra, home_of(infra, base, environ)


def travelling(loaded: Loaded) -> dict[str, Any]:
    """Return the infrastructure that a worker needs, as plain data without secrets; folders are absolute.

    Nothing for threads, which have it all.

    Raises:
        BadInput: an address holds a password and is not set by the variable that workers can set as well.
    """
    if loaded.config.infra.task_runner == "threads":
        return {}
    infra = {name: copy.deepcopy(loaded.infra[name]) for name in TRAVEL if loaded.infra.get(name)}
    uri = (infra.get("store") or {}).get("uri")
    if uri is not None and "://" not in uri:
        infra["store"]["uri"] = _absolute(uri)
    proof = infra.get("proof") or {}
    for name in ("signing_key_file", "timestamp_roots"):
        if proof.get(name):
            proof[name] = _absolute(proof[name])
    if keys := proof.get("verification_keys"):
        proof["verification_keys"] = [key if key.startswith("ed25519:") else _absolute(key) for key in keys]
    for path, holder, key, value in list(_values(infra, ("infra",))):
        if isinstance(value, str) and without_credentials(value) != value:
            variable = PREFIX + "__".join(path).upper()
            if variable not in os.environ:
                raise BadInput(
                    f"{'.'.join(path)} holds a password, which must not travel to workers; set {variable} "
                    "here and on each of them instead"
                )
            del holder[key]
    return {**infra, "home": str(loaded.home.absolute())}


def arrived(data: dict[str, Any], environ: Mapping[str, str] | None = None) -> InfraConfig:
    """The infrastructure that `travelling` described, its secrets and what it leaves out from `environ`."""
    environ = os.environ if environ is None else environ
    own: dict[str, Any] = {}
    _assign_variables(own, environ, f"{PREFIX}INFRA__")
    for path, _, _, value in _values(data):
        _assign(own, ["infra", *path], value, ".".join(path))
    _fill_variables(own, environ)
    return InfraConfig.model_validate(own["infra"])


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def home_of(infra: InfraConfig, base: Path, environ: Mapping[str, str]) -> Path:
    """Data folder: infra.home, else RESPROUT_HOME, else .resprout in the config's project."""
    given = infra.home or environ.get("RESPROUT_HOME")
    if given:
        home = Path(given).expanduser()
        return home if home.is_absolute() else (Path.cwd() / home)
    for folder in (base, *base.parents):
        if (folder / "pyproject.toml").exists() or (folder / ".git").exists():
            return folder / ".resprout"
    return base / ".resprout"


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"no config at {path}; give the path of a YAML file (see configs/)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read as text: {error}") from None
    try:
        data = parsed(text)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path} holds {type(data).__name__}, but a run config is a mapping of sections")
    return data


def parsed(text: str) -> Any:
    """The value that YAML text states, with what an alias repeats written out.

    Raises:
        BadInput: it is no YAML, or its aliases repeat each other beyond all bounds.
    """
    try:
        data = yaml.load(text, Loader=_Loader)
    except BadInput:
        raise
    except yaml.YAMLError as error:
        raise BadInput(
            f"not valid YAML ({' '.join(str(error).split())}); quote text that is no YAML"
        ) from None
    except RecursionError:
        raise BadInput("nested too deeply to be read; a run config has a few levels") from None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # Scalars that look like a date or a number, tags on what they do not fit, keys that are no text.
        raise BadInput(
            f"a value that YAML cannot read ({' '.join(str(error).split())[:200]}); put it in quotes "
            "where it is text"
        ) from None
    try:
        return _unshared(data, itertools.count())
    except RecursionError:
        raise BadInput("it has an anchor that holds itself; write the section out") from None


def explain(
    error: ValidationError, where: str, prefix: tuple[str, ...] = (), root: type[BaseModel] = RunConfig
) -> str:
    """All faults of a validation in sentences; an unknown key names the nearest known one and all of them."""
    faults: dict[tuple[str, str], dict[str, None]] = {}
    found = error.errors(include_url=False)
    for fault in found:
        if fault["type"] == "too_short" and any(_is_below(one["loc"], fault["loc"]) for one in found):
            # What was given has a fault of its own, and is left out of the count.
            continue
        location = [*prefix, *(part for part in fault["loc"] if "[" not in str(part) and part not in TYPES)]
        shown = ""
        if fault["type"] == "extra_forbidden":
            known = _known_keys(location[:-1], root)
            near = difflib.get_close_matches(str(location[-1]), known, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            there = INSTEAD.get(".".join(map(str, location))) if root is RunConfig else None
            allowed = ", ".join(known)
            message = f"unknown key; {there or f'{hint}allowed: {allowed}'}"
        elif fault["type"] == "missing":
            message = "missing; this key is required"
        else:
            message = fault["msg"].removeprefix("Value error, ")
            message = message[0].lower() + message[1:]
            for word, plain in IN_YAML.items():
                message = message.replace(word, plain)
            given = fault.get("input")
            if isinstance(given, str | int | float | bool | type(None)) and not _is_secret(location):
                shown = f" (given: {without_credentials(repr(given))})"
        # A key that may have several types has a fault for each of them.
        faults.setdefault((".".join(map(str, location)) or "config", shown), {})[message] = None
    sentences = "; ".join(f"{key}: {', or '.join(one)}{shown}" for (key, shown), one in faults.items())
    return f"{where}: {sentences}"


def _is_below(place: tuple[Any, ...], above: tuple[Any, ...]) -> bool:
    return len(place) > len(above) and place[: len(above)] == above


def _value(text: str, shown: str) -> Any:
    if not text:
        return None
    try:
        return parsed(text)
    except BadInput as error:
        name = shown.partition("=")[0]
        raise BadInput(f"the value of {name[:80]}: {error}") from None


def _unshared(data: Any, counted: Iterator[int]) -> Any:
    """A copy in which what an alias repeats stands twice, so that an override reaches one of the two."""
    if next(counted) > MOST_VALUES:
        raise BadInput(f"more than {MOST_VALUES} values; its aliases repeat each other, write fewer")
    if isinstance(data, dict):
        return {_unshared(key, counted): _unshared(value, counted) for key, value in data.items()}
    if isinstance(data, int) and data.bit_length() > MOST_BITS:
        raise BadInput(f"a number of {data.bit_length()} bits; numbers have at most {MOST_BITS}")
    return [_unshared(value, counted) for value in data] if isinstance(data, list) else data


def _assign_variables(data: dict[str, Any], environ: Mapping[str, str], prefix: str = PREFIX) -> None:
    """Set what RESPROUT_* variables name, read as YAML; of a secret only the variable's name is noted."""
    sections = _known_keys([])
    for name, text in sorted(environ.items()):
        if not name.startswith(prefix) or name in RESERVED:
            continue
        keys = name[len(PREFIX) :].lower().split("__")
        if keys[0] not in sections:
            near = difflib.get_close_matches(keys[0], sections, n=1)
            hint = f"did you mean {PREFIX}{near[0].upper()}? " if near else ""
            raise BadInput(
                f"the environment variable {name} sets no key of a run config; {hint}unset it, or name one "
                f"of {', '.join(sections)}"
            )
        _assign(data, keys, f"${{{name}}}" if _is_secret(keys) else _value(text, name), name)


def _assign(data: dict[str, Any], keys: list[str], value: Any, shown: str) -> None:
    """Set data[k0][k1]... = value, making sections on the way; a number indexes a list."""
    place: Any = data
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(place, list):
            if not key.isdigit() or int(key) >= len(place):
                raise BadInput(
                    f"'{shown}': {'.'.join(keys[:depth])} is a list of {len(place)}; index it from 0"
                )
            index: Any = int(key)
        elif isinstance(place, dict):
            index = key
        else:
            raise BadInput(f"'{shown}': {'.'.join(keys[:depth])} is a value, not a section")
        if last:
            place[index] = value
        else:
            if isinstance(place, dict) and place.get(index) is None:
                place[index] = {}
            place = place[index]


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        found = _section_of(inner)
        if found is not None:
            return found
    return None


def _known_keys(location: list[Any], root: type[BaseModel] = RunConfig) -> list[str]:
    section = root
    for part in location:
        if isinstance(part, int):
            continue
        for name, field in section.model_fields.items():
            if part in (name, field.alias):
                section = _section_of(field.annotation) or section
    return [field.alias or name for name, field in section.model_fields.items()]


def _is_secret(path: Sequence[Any]) -> bool:
    section: type[BaseModel] | None = RunConfig
    for part in path:
        field = section.model_fields.get(part) if section is not None else None
        if field is None:
            return False
        if SecretStr in (field.annotation, *get_args(field.annotation)):
            return True
        section = _section_of(field.annotation)
    return False


def _values(data: Any, path: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any, Any, Any]]:
    """Path, holder, key and value of everything in `data` that is no section and no list."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        here = (*path, str(key))
        if isinstance(value, dict | list):
            yield from _values(value, here)
        else:
            yield here, data, key, value


def _refuse_plain_secrets(data: Any, path: tuple[str, ...] = ()) -> None:
    for inside, _, _, value in _values(data, path) if isinstance(data, dict | list) else ():
        if _is_secret(inside) and value is not None and not VARIABLE.match(str(value)):
            raise BadInput(
                f"{'.'.join(inside)}: a secret is written out; put it in an environment variable and write "
                "${ITS_NAME}"
            )


def _fill_variables(data: dict[str, Any], environ: Mapping[str, str]) -> None:
    for path, holder, key, text in list(_values(data)):
        match = VARIABLE.match(text) if isinstance(text, str) else None
        if match is None:
            continue
        dotted = ".".join(path)
        if not _is_secret(path):
            raise BadInput(
                f"{dotted}: {text} is for secrets only; set this key by RESPROUT_{'__'.join(path).upper()} "
                f"or on the command line as {dotted}=value"
            )
        if match[1] not in environ:
            raise BadInput(f"{dotted}: the environment variable {match[1]} is not set")
        holder[key] = environ[match[1]]
