"""A method written on one line: ``NAME``, ``NAME:option=value``, or ``SELECTION+POSITIONS``.

Knows how options are written and what types they have; does not know what they mean.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from ...errors import ConfigError
from .base import Given, Method, Recipe

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def make(spec: str, recipes: Mapping[str, Recipe], given: Given) -> Method:
    """The method a line stands for.

    Args:
        spec: such as ``recall``, ``rerope:window=128:log_n=false`` or ``recall+rerope``.
        recipes: by name.
        given: the model it is for.

    Raises:
        ConfigError: no such method or option, a value of the wrong type, or one the model does not allow.
    """
    first, *others = read(spec, recipes)
    method = first.make(given)
    names = [part.strip().split(":")[0] for part in spec.split("+")]
    written = [method.spec or spec_of(names[0], vars(first)), *(spec_of(names[1], vars(other)) for other in others)]
    method = dataclasses.replace(method, name=spec, spec="+".join(written))
    return _combined(method, others[0].make(given)) if others else method


def spec_of(name: str, options: Mapping[str, Any]) -> str:
    """A method as it is written on one line; options that are None are left out."""
    return ":".join([name, *(f"{key}={str(value).lower()}" for key, value in options.items() if value is not None)])


def written_options(spec: str) -> tuple[str, dict[str, str], str]:
    """The name of the first method of a line, its options as they are written there, and what follows it: ``+POSITIONS``, or nothing."""
    selection, plus, positions = spec.partition("+")
    name, *options = selection.strip().split(":")
    pairs = (option.partition("=") for option in options)
    return name, {key: value for key, _, value in pairs}, plus + positions


def read(spec: str, recipes: Mapping[str, Recipe]) -> list[Recipe]:
    """The one or two recipes a line names, with their options.

    Raises:
        ConfigError: no such method or option, or a value of the wrong type.
    """
    parts = spec.split("+")
    if len(parts) > 2:
        raise ConfigError(f"method {spec!r}: one selection and one position map go together, as in 'recall+rerope'")
    return [_recipe(part, recipes) for part in parts]


def _combined(selection: Method, positions: Method) -> Method:
    if selection.sizes is None:
        raise ConfigError(f"method {selection.name!r}: the first one attends to everything and selects nothing; put it second")
    if positions.sizes is not None:
        raise ConfigError(f"method {selection.name!r}: the second one has no position map of its own for tokens far away")
    return dataclasses.replace(selection, positions=positions.positions)


def _recipe(written: str, recipes: Mapping[str, Recipe]) -> Recipe:
    name, *options = written.strip().split(":")
    if name not in recipes:
        raise ConfigError(f"no method named {name!r}; choose one of {', '.join(sorted(recipes))}")
    recipe = recipes[name]
    values: dict[str, Any] = {}
    for option in options:
        key, value = _option(name, type(recipe), option)
        if key in values:
            raise ConfigError(f"{written}: {key} is given twice")
        values[key] = value
    return dataclasses.replace(recipe, **values) if values else recipe


def _option(name: str, recipe: type, written: str) -> tuple[str, Any]:
    key, equals, value = written.partition("=")
    kinds = get_type_hints(recipe)
    known = {field.name: kinds[field.name] for field in dataclasses.fields(recipe)}
    if key not in known or not equals:
        raise ConfigError(f"{name}:{written}: unknown option; {name} has {', '.join(sorted(known)) or 'none'}, written {name}:option=value")
    kind = next(iter(kind for kind in (*get_args(known[key]), known[key]) if kind is not type(None)))
    try:
        read = BOOLEANS[value.lower()] if kind is bool else kind(value)
        if kind is float and not math.isfinite(read):
            raise ValueError
        return key, read
    except (ValueError, KeyError):
        raise ConfigError(f"{name}:{written}: {value!r} is no {kind.__name__}") from None
