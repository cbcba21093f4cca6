"""How a config names a component: `spec(SomeClass, depth=12)`.

A spec is the component's dotted name and its keyword arguments in an `ml_collections.ConfigDict`,
so that it prints, is overridden from the command line, is saved as JSON beside a checkpoint and is
rebuilt years later without the file that wrote it. Keywords are checked against the component's
signature when they are written, when they are overridden and when they are read back. Imports
nothing else of big_mm.
"""

import ast
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import json
import pathlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_collections

CLASS = "_class_"
# Packages whose components a stored config may name. A config file is code and may name anything; a
# JSON file beside a checkpoint is data, and must not be able to call `os.system`.
TRUSTED = ("big_mm", "experiments", "optax")
# Parameters that Flax modules take from Flax, not from a config.
_FLAX_FIELDS = frozenset({"parent", "name"})


class UserError(ValueError):
    """Something the user can correct; entry points print it as one line and exit with status 2."""


def choose(kind: str, name: str, options: Iterable[str]) -> None:
    """Raises UserError, listing the options, unless `name` is among them."""
    if name not in options:
        raise UserError(f"{kind}={name!r} is none of {', '.join(options)}")


def spec(component: Callable[..., Any], /, **kwargs: Any) -> ml_collections.ConfigDict:
    """Names a component (a class or a function) and its keyword arguments.

    Raises:
      UserError: the component cannot be imported by name, or a keyword is not in its signature.
    """
    name = f"{component.__module__}.{component.__qualname__}"
    if locate(name) is not component:
        raise UserError(f"{name} cannot be named in a config: define it at the top of a module")
    for key in kwargs:
        _check_keyword(component, key)
    return ml_collections.ConfigDict({CLASS: name, **{k: _as_config(v) for k, v in kwargs.items()}})


def build(config: Any, *, trusted: Sequence[str] | None = None) -> Any:
    """Builds the object a config describes: specs become instances, dicts and sequences are walked.

    Sequences become tuples, so that what is built from JSON is what was built from Python.

    Raises:
      UserError: an unknown, misspelt or missing keyword, or a class outside the `trusted` packages.
    """
    return _build(config, "config", trusted)


def _build(node: Any, path: str, trusted: Sequence[str] | None) -> Any:
    if isinstance(node, (list, tuple)):
        return tuple(_build(v, f"{path}.{i}", trusted) for i, v in enumerate(node))
    if not isinstance(node, (Mapping, ml_collections.ConfigDict)):
        return node
    kwargs = {k: _build(node[k], f"{path}.{k}", trusted) for k in node if k != CLASS}
    if CLASS not in node:
        return kwargs
    component = locate(node[CLASS], trusted)
    for key in kwargs:
        _check_keyword(component, key, path)
    missing = [
        name
        for name, p in _signature(component).items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        if name not in kwargs
    ]
    if missing:
        raise UserError(f"{path} ({node[CLASS]}) needs {', '.join(missing)}")
    try:
        return component(**kwargs)
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same config with every default of every component written out, components too.

    A default that JSON cannot hold stays the component's own affair.
    """
    return ml_collections.ConfigDict(_as_config(_resolve(config)))


def _resolve(config: Any) -> Any:
    if isinstance(config, (list, tuple)):
        return [_resolve(v) for v in config]
    if not isinstance(config, (Mapping, ml_collections.ConfigDict)):
        return config
    out = {k: _resolve(config[k]) for k in config}
    if CLASS in out:
        for name, parameter in _signature(locate(out[CLASS])).items():
            if name not in out and _is_plain(default := _described(parameter.default)):
                out[name] = _resolve(default)
    return out


def _described(default: Any) -> Any:
    """The spec of a default that is a component; anything else as it is."""
    if not dataclasses.is_dataclass(default) or isinstance(default, type):
        return default
    values = {
        field.name: _described(getattr(default, field.name))
        for field in dataclasses.fields(default)
        if field.init
    }
    return spec(type(default), **values)


def to_json(config: Any) -> str:
    """Indented JSON text of a config."""
    return json.dumps(_plain(config), indent=1) + "\n"


def from_json(
    text: str, *, trusted: Sequence[str] = TRUSTED, parts: Sequence[str] = ()
) -> ml_collections.ConfigDict:
    """Reads a config back, refusing classes outside the `trusted` packages and unknown keywords.

    Args:
      parts: dotted keys; the rest is left out and may name what is gone by now. Default: all.

    Raises:
      UserError: not JSON, an untrusted or unknown class, or a keyword the class does not take.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"the config is not JSON: {error}") from error
    if parts:
        data = _only(data, [part.split(".") for part in parts])
    _verify(data, "config", trusted)
    return ml_collections.ConfigDict(_as_config(data))


def _only(node: Any, parts: list[list[str]]) -> Any:
    """The node without its class and with nothing but these parts."""
    kept = {}
    for key in dict.fromkeys(part[0] for part in parts):
        if key not in node:
            raise UserError(f"the config has no {key!r}; it has {', '.join(node)}")
        deeper = [part[1:] for part in parts if part[0] == key and part[1:]]
        kept[key] = _only(node[key], deeper) if deeper else node[key]
    return kept


def load_config(source: str) -> ml_collections.ConfigDict:
    """Loads `FILE.py` or `FILE.py:ARG` by calling its `get_config(ARG)`.

    Raises:
      UserError: no such file, no `get_config` in it, or it returns something else than a spec.
    """
    file, _, argument = source.partition(":")
    module = _config_module(file)
    if not hasattr(module, "get_config"):
        raise UserError(f"{file} has no get_config(arg='')")
    config = module.get_config(argument) if argument else module.get_config()
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"get_config of {file} returns {type(config).__name__}, not spec(...)")
    return config


def variants(file: str) -> tuple[str, ...]:
    """The arguments of `get_config` that a config file lists in VARIANTS; else the default alone.

    Raises:
      UserError: no such file.
    """
    return tuple(getattr(_config_module(file), "VARIANTS", ("",)))


def _config_module(file: str) -> types.ModuleType:
    path = pathlib.Path(file)
    if not path.is_file():
        raise UserError(f"no config file {file}")
    module_spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def override(config: ml_collections.ConfigDict, arguments: Iterable[str]) -> None:
    """Applies `--config.a.b=value` arguments in place.

    A value is a Python literal, or else text; a value that names a component class
    (`--config.optimizer=big_mm.training.optimizer.Lion`) stands for `spec(thatClass)` and may also
    be added to a plain dict (`--config.evaluators.mine=...`). A number in the key indexes a
    sequence. A keyword of a component may be set even if the config leaves it at its default.

    Raises:
      UserError: not of that form, no such key, or a value of another type than the one it replaces.
    """
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not key.startswith("config.") or not equals:
            raise UserError(
                f"unknown argument {argument!r}: overrides look like --config.key=value"
            )
        _set(config, key.split(".")[1:], _parse(value), key)


def _set(node: Any, keys: list[str], value: Any, full: str) -> None:
    key, *rest = keys
    if isinstance(node, (list, tuple)):
        if not key.isdigit() or int(key) >= len(node):
            raise UserError(f"--{full}: {key!r} is not an index below {len(node)}")
        _set(node[int(key)], rest, value, full)
        return
    if not isinstance(node, ml_collections.ConfigDict):
        raise UserError(f"--{full}: there is nothing to set below {key!r}, its parent is {node!r}")
    current = node.get(key)
    if key not in node:
        if CLASS in node:
            component = locate(node[CLASS])
            _check_keyword(component, key, f"--{full}")
            current = _described(_signature(component)[key].default)
            if rest and isinstance(current, ml_collections.ConfigDict):
                with node.unlocked():
                    node[key] = current
        elif rest or not isinstance(value, ml_collections.ConfigDict):
            raise UserError(f"--{full}: no key {key!r}{_nearest(key, list(node))}")
    if rest:
        _set(node[key] if key in node else None, rest, value, full)
        return
    with node.unlocked(), node.ignore_type():
        node[key] = _conform(value, current, full)


def _conform(value: Any, current: Any, key: str) -> Any:
    """The override as the type of what it replaces, or a UserError."""
    known = current is not None and _is_plain(current)
    containers = (list, tuple, Mapping, ml_collections.ConfigDict)
    if not known or value is None or isinstance(current, containers):
        return value
    if isinstance(current, float) and type(value) is int:
        return float(value)
    if isinstance(current, str) and not isinstance(value, (ml_collections.ConfigDict, str)):
        return str(value)
    if type(value) is not type(current):
        wanted = type(current).__name__
        raise UserError(f"--{key}: {value!r} is not {wanted} (it replaces {current!r})")
    return value


def _parse(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    if text in ("true", "false"):
        return text == "true"
    if text.split(".")[0] in TRUSTED and "." in text and "/" not in text:
        return spec(locate(text))
    return text


def locate(name: str, trusted: Sequence[str] | None = None) -> Any:
    """Imports `package.module.Class[.Inner]`.

    Raises:
      UserError: there is none, or it is not of a `trusted` package.
    """
    if trusted is not None and name.split(".")[0] not in trusted:
        raise UserError(
            f"the stored config names {name!r}, which is outside the trusted packages "
            f"{', '.join(trusted)}: pass trusted=(...) if you trust its origin"
        )
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:split])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name + ".").startswith(error.name + "."):
                continue
            raise
        for part in parts[split:]:
            found = getattr(found, part, None)
        if found is None or not callable(found):
            raise UserError(f"there is no component {name!r} in {module_name}")
        # `big_mm.some_module.subprocess.run` is reachable through big_mm but is not of it.
        home = getattr(found, "__module__", None) or "builtins"
        if trusted is not None and home.split(".")[0] not in trusted:
            raise UserError(f"the stored config names {name!r}, which comes from {home}")
        return found
    raise UserError(f"no module of {name!r} can be imported (is its package on the Python path?)")


def _signature(component: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(component).parameters
    return {k: p for k, p in parameters.items() if k not in _FLAX_FIELDS}


def _check_keyword(component: Callable[..., Any], key: str, path: str = "") -> None:
    parameters = _signature(component)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) or key in parameters:
        return
    where = f"{path}: " if path else ""
    raise UserError(
        f"{where}{component.__qualname__} has no keyword {key!r}{_nearest(key, list(parameters))}"
    )


def _nearest(key: str, valid: list[str]) -> str:
    valid = [v for v in valid if v != CLASS]
    near = difflib.get_close_matches(key, valid, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(sorted(valid))}"


def _verify(node: Any, path: str, trusted: Sequence[str]) -> None:
    if isinstance(node, list):
        for i, value in enumerate(node):
            _verify(value, f"{path}.{i}", trusted)
    elif isinstance(node, dict):
        if CLASS in node:
            component = locate(node[CLASS], trusted)
            for key in node:
                if key != CLASS:
                    _check_keyword(component, key, path)
        for key, value in node.items():
            _verify(value, f"{path}.{key}", trusted)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    if isinstance(value, (Mapping, ml_collections.ConfigDict)):
        return all(isinstance(k, str) and _is_plain(value[k]) for k in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _as_config(value: Any) -> Any:
    if dataclasses.is_dataclass(value) or callable(value):
        raise UserError(
            f"{value!r} is an object: write spec({type(value).__name__}, ...) in a config"
        )
    if isinstance(value, (list, tuple)):
        return tuple(_as_config(v) for v in value)
    if isinstance(value, Mapping):
        return ml_collections.ConfigDict({k: _as_config(v) for k, v in value.items()})
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (Mapping, ml_collections.ConfigDict)):
        return {k: _plain(value[k]) for k in sorted(value)}
    if not _is_plain(value):
        raise UserError(f"{value!r} in a config cannot be saved as JSON")
    return value
