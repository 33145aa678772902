"""An earlier name of what is in :mod:`cnv2_plugin.deploy`: ``lower`` and ``lowered_forms``."""

from importlib import import_module


def __getattr__(name: str) -> object:
    if name in ('lower', 'lowered_forms'):
        return getattr(import_module('cnv2_plugin.deploy'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
