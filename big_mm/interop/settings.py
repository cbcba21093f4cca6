"""Another program's settings, every one of which must be understood; and of ours what it lacks."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from big_mm.spec import UserError


class Settings:
    """A section of a config: what is asked for is noted, so that the rest can be refused.

    Attributes:
      where: the section, for messages.
    """

    def __init__(self, values: Any, where: str):
        if not isinstance(values, Mapping):
            raise UserError(f"{where} must be a JSON object, not {values!r}")
        self._values, self._known, self.where = dict(values), set(), where

    def get(self, key: str, default: Any = None) -> Any:
        """The value; the default where it is absent or null."""
        self._known.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def is_null(self, key: str) -> bool:
        """Whether it is there and null."""
        self._known.add(key)
        return key in self._values and self._values[key] is None

    def need(self, key: str) -> Any:
        """The value, which must be there."""
        self._known.add(key)
        if key not in self._values:
            raise UserError(f"{self.where} has no {key!r}")
        return self._values[key]

    def only(self, key: str, *supported: Any) -> Any:
        """The value, which must be one of those supported; the first is the default."""
        value = self.get(key, supported[0])
        # True is 1 to Python, and no list is hashable.
        if not any(type(value) is type(x) and value == x for x in supported):
            listed = ", ".join(repr(x) for x in supported)
            raise UserError(f"{self.where}.{key}={value!r} is not supported; supported: {listed}")
        return value

    def section(self, key: str) -> "Settings":
        """A section of this one, empty where it is absent."""
        return Settings(self.get(key, {}), f"{self.where}.{key}")

    def without_effect(self, *keys: str) -> None:
        """Notes settings that change no output of the model."""
        self._known.update(keys)

    def close(self) -> None:
        """Refuses what nobody asked for.

        Raises:
          UserError: names the setting and the nearest known.
        """
        for key in self._values:
            if key not in self._known:
                given = f"{self.where}.{key}={self._values[key]!r}"
                raise UserError(f"{given} is not known{nearest(key, self._known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; the nearest known is ...`, for the end of a message."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
    return f"; the nearest known: {', '.join(near)}" if near else ""


def differ(name: str, part: Any, needed: Mapping[str, Any]) -> list[str]:
    """What of a part of our model another program cannot express, and what it needs, for messages.

    Args:
      name: of the part.
      needed: by attribute.
    """
    return [
        f"{name}.{key}={getattr(part, key)!r} (needs {value!r})"
        for key, value in needed.items()
        if getattr(part, key) != value
    ]
