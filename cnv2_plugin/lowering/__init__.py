"""Native stages of our trunks; ``lower`` and ``lowered_forms`` are in :mod:`cnv2_plugin.deploy` and keep this name."""

from importlib import import_module


def __getattr__(name: str) -> object:
    if name in ('lower', 'lowered_forms'):
        return getattr(import_module('cnv2_plugin.deploy'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
