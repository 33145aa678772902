"""Which class of which toolkit is restated by which adapter, so that a whole model fits into one file."""

from collections.abc import Callable
from typing import Any

_ADAPTERS: dict[str, tuple[type, tuple[str, ...]]] = {}


class UnsupportedModelError(ValueError):
    """A model has a part that no adapter restates; the message names it."""


def adapts(*names: str, methods: tuple[str, ...]) -> Callable[[type], type]:
    """Register an adapter for the classes of those full names; it stands for what these methods of them compute."""

    def register(adapter: type) -> type:
        _ADAPTERS.update({name: (adapter, methods) for name in names})
        return adapter

    return register


def full_name(kind: type) -> str:
    """Module and name of a class."""
    return f'{kind.__module__}.{kind.__qualname__}'


def adapt(part: Any, *args: Any) -> Any:
    """Build the adapter of a part from it.

    Raises:
        UnsupportedModelError: there is none for its class, or it overrides what the adapter restates.
    """
    name, kinds = full_name(type(part)), type(part).__mro__
    known: Any = next((kind for kind in kinds if full_name(kind) in _ADAPTERS), None)
    remedy = 'export its backbone and neck (cnv2 deploy --features)'
    refuse(known is None, f'{name} is not known here, so that what it finds', remedy)
    adapter, methods = _ADAPTERS[full_name(known)]
    overridden = set(vars(part)).union(*map(vars, kinds[: kinds.index(known)]))
    found = [method for method in methods if method in overridden]
    refuse(found, f'{name} overrides {", ".join(found)} of {known.__name__}, so that what it finds', remedy)
    return adapter(part, *args)


def refuse(condition: Any, what: str, remedy: str) -> None:
    """Raise where the condition holds."""
    if condition:
        raise UnsupportedModelError(f'{what} cannot be restated in standard operators; {remedy}.')
