"""Plain values checked against the annotations of a dataclass.

YAML knows numbers, text, lists and mappings; dataclasses know what they want. `construct`
goes from the one to the other and refuses everything that does not fit, with a sentence
that names the dotted key and the file it stood in; `plain` goes back.
"""

import dataclasses
import difflib
import math
import os
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from ewald_jax.typing import InputError

__all__ = ["Sources", "construct", "flatten", "plain"]

# What linen adds to the fields of every module; never a setting.
_MODULE_FIELDS = ("parent", "name")

_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}


class Sources:
    """Where each dotted key came from and which keys exist: what an error needs to say.

    Attributes:
        origin: Dotted key to the file (or other place) that set it last.
        known: Every valid dotted key.
    """

    def __init__(self, origin: Mapping[str, str], known: tuple[str, ...] = ()):
        """Remember the origins; the valid keys may follow by `knowing`."""
        self.origin = dict(origin)
        self.known = known

    def knowing(self, schema: Mapping[str, type]) -> "Sources":
        """The same origins with the valid keys of `schema`, section name to dataclass."""
        known = [key for name, cls in schema.items() for key in _keys(cls, name)]
        return Sources(self.origin, (*schema, "model", "model.name", *known))

    def fail(self, key: str, message: str) -> NoReturn:
        """Raise `InputError`: the place of `key`, the key, and what is wrong with it."""
        # Dataclasses name the field themselves: `optim.lr must be ...`.
        named = message.startswith((f"{key}.", f"{key.rpartition('.')[2]}."))
        what = message if named else f"'{key}': {message}"
        inside = [place for name, place in self.origin.items() if _within(name, key)]
        above = [self.origin.get(parent) for parent in _parents(key)]
        # The key itself, else the last file that set a part of it, else its section.
        candidates = (self.origin.get(key), *inside[-1:], *above)
        place = next((name for name in candidates if name), None)
        raise InputError(f"{place}: {what}" if place else what)

    def unknown(self, key: str) -> NoReturn:
        """Raise `InputError` for a key that does not exist, naming the nearest one."""
        self.fail(key, f"unknown key{self._suggestion(key)}")

    def _suggestion(self, key: str) -> str:
        parent, _, leaf = key.rpartition(".")
        siblings = {k.rpartition(".")[2]: k for k in self.known if _parent(k) == parent}
        leaves = {k.rpartition(".")[2]: k for k in reversed(self.known)}
        whole = {k: k for k in self.known}
        # A key in the wrong section, a slip of the finger, both, then anything.
        for names, word, cutoff in (
            (leaves, leaf, 1.0),
            (siblings, leaf, 0.6),
            (leaves, leaf, 0.75),
            (siblings if parent else whole, key if not parent else leaf, 0.0),
            (whole, key, 0.0),
        ):
            near = difflib.get_close_matches(word, names, n=1, cutoff=cutoff)
            if near:
                return f"; did you mean '{names[near[0]]}'?"
        return ""


def construct(cls: type, values: Any, key: str, sources: Sources) -> Any:
    """Build the dataclass (or linen module) `cls` from plain values.

    Args:
        cls: The class; its annotations are the schema.
        values: Field name to plain value, as read from YAML or JSON.
        key: Dotted name of this place, for errors.
        sources: Where the values came from, for errors.

    Raises:
        InputError: For an unknown or missing key, an ill-typed value, or one that the class
            itself refuses.
    """
    if not isinstance(values, Mapping):
        sources.fail(key, f"expected a mapping of keys, got {values!r}")
    hints, fields = get_type_hints(cls), fields_of(cls)
    for name in values:
        if name not in fields:
            sources.unknown(f"{key}.{name}")
    for name, field in fields.items():
        if _required(field) and name not in values:
            sources.fail(f"{key}.{name}", f"is missing; expected {_describe(hints[name])}")
    settings = {
        name: _coerce(value, hints[name], f"{key}.{name}", sources)
        for name, value in values.items()
    }
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        sources.fail(key, str(error))


def fields_of(cls: type) -> dict[str, dataclasses.Field]:
    """The settings of a dataclass or linen module by name."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    if "parent" in fields:
        fields = {k: v for k, v in fields.items() if k not in _MODULE_FIELDS}
    return fields


def is_default(field: dataclasses.Field, value: Any) -> bool:
    """Whether a field has the value it would have unset."""
    if field.default is not dataclasses.MISSING:
        return value == field.default
    return field.default_factory is not dataclasses.MISSING and (
        value == field.default_factory()
    )


def plain(value: Any) -> Any:
    """The value in JSON's types: dataclasses as dicts, tuples as lists, paths as text."""
    if dataclasses.is_dataclass(value):
        return {name: plain(getattr(value, name)) for name in fields_of(type(value))}
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def flatten(values: Any, key: str = "") -> Iterator[str]:
    """Dotted names of all leaves of nested mappings."""
    if not isinstance(values, Mapping) or not values:
        yield key
        return
    for name, entry in values.items():
        yield from flatten(entry, f"{key}.{name}" if key else str(name))


def _coerce(value: Any, hint: Any, key: str, sources: Sources) -> Any:
    """The value in the type of the annotation; InputError if it does not fit."""
    if hint is Any or hint is object:
        return value
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, args, hint, key, sources)
    if origin is Literal:
        if value in args and type(value) in map(type, args):
            return value
        near = difflib.get_close_matches(str(value), map(str, args), n=1)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        sources.fail(key, f"expected {_describe(hint)}, got {value!r}{guess}")
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else construct(hint, value, key, sources)
    base = origin or hint
    if base is tuple and isinstance(value, (list, tuple)):
        every = len(args) == 2 and args[1] is Ellipsis
        if every or not args or len(args) == len(value):
            kinds = [args[0] if every else Any] * len(value) if every or not args else args
            pairs = enumerate(zip(value, kinds, strict=True))
            return tuple(_coerce(v, t, f"{key}[{i}]", sources) for i, (v, t) in pairs)
    elif isinstance(base, type) and issubclass(base, Mapping) or base is Mapping:
        if isinstance(value, Mapping):
            kinds = args or (Any, Any)
            return {
                _coerce(k, kinds[0], key, sources): _coerce(
                    v, kinds[1], f"{key}.{k}", sources
                )
                for k, v in value.items()
            }
    elif base is float:
        number = _number(value)
        if number is not None:
            return number
    elif base is Path and isinstance(value, (str, Path)):
        return Path(value)
    elif isinstance(base, type) and type(value) is base:
        return value
    sources.fail(key, f"expected {_describe(hint)}, got {value!r}{_advice(value, hint)}")


def _coerce_union(value, args, hint, key, sources) -> Any:
    """The first member of the union that takes the value."""
    if value is None and type(None) in args:
        return None
    if dataclasses.is_dataclass(value) and type(value) in args:
        return value
    if isinstance(value, Mapping):
        # A mapping can only mean the nested dataclass: its own errors say more.
        for member in args:
            if dataclasses.is_dataclass(member):
                return construct(member, value, key, sources)
    exact = [member for member in args if member is type(value)]
    for member in (*exact, *args):
        try:
            return _coerce(value, member, key, sources)
        except InputError:
            continue
    sources.fail(key, f"expected {_describe(hint)}, got {value!r}{_advice(value, hint)}")


def _number(value: Any) -> float | None:
    """A float; YAML 1.1 takes `1e-4` for text, so text that is a number counts."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _advice(value: Any, hint: Any) -> str:
    """What to write instead, for the slips that YAML invites."""
    kinds = get_args(hint) or (hint,)
    if str in kinds and value is not None and not isinstance(value, (list, dict)):
        return " (put it in quotes)"
    if int in kinds and isinstance(value, float) and value.is_integer():
        return f" (write {int(value)})"
    return ""


def _describe(hint: Any) -> str:
    """An annotation in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_describe(member) for member in args))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if (origin or hint) is tuple:
        if not args or args[-1] is Ellipsis:
            return f"a list of {_plural(args[0])}" if args else "a list"
        kinds = dict.fromkeys(map(_plural, args))
        return f"a list of {len(args)} {' or '.join(kinds)}"
    if dataclasses.is_dataclass(hint) or "dict" in str(hint) or "Mapping" in str(hint):
        return "a mapping"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _plural(hint: Any) -> str:
    words = {int: "integers", float: "numbers", bool: "booleans", str: "texts"}
    return words.get(hint, f"entries, each {_describe(hint)}")


def _required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _keys(cls: type, key: str) -> Iterator[str]:
    """All dotted keys of a dataclass and of the dataclasses in its fields."""
    hints = get_type_hints(cls)
    for name in fields_of(cls):
        yield f"{key}.{name}"
        for member in (hints[name], *get_args(hints[name])):
            if dataclasses.is_dataclass(member):
                yield from _keys(member, f"{key}.{name}")


def _parent(key: str) -> str:
    return key.rpartition(".")[0]


def _parents(key: str) -> Iterator[str]:
    while key:
        yield key
        key = _parent(key)


def _within(name: str, key: str) -> bool:
    return name == key or name.startswith((f"{key}.", f"{key}["))
