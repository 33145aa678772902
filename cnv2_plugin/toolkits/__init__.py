"""Thin adapters to the toolkits; nothing below this folder knows their names."""

from importlib import import_module
from importlib.util import find_spec

FAILURES: dict[str, Exception] = {}
"""Error of each installed toolkit that cannot be imported, by package; the others work without it."""

_ADAPTERS = {'timm': 'timm', 'mmengine': 'openmmlab'}


def register_all() -> None:
    """Register models with timm and mmengine, where they are installed and can be imported."""
    for package, adapter in _ADAPTERS.items():
        try:
            if find_spec(package) is None:
                continue
            import_module(package)
        except Exception as error:
            FAILURES[package] = error
            continue
        import_module(f'{__name__}.{adapter}')
