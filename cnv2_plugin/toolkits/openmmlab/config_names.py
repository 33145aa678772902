"""Makes the package's configs known: to mmengine as ``cnv2_plugin::...``, to MMPretrain by the names of the models."""

import sys
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

from mmengine.config.utils import MODULE2PACKAGE

from ...config_files import MIM, PACKAGE
from .. import FAILURES

_HUB = 'mmpretrain.apis.model'


def register_configs() -> None:
    """Let mmengine resolve ``cnv2_plugin::...``, and MMPretrain's ``list_models`` and ``get_model`` find our names.

    Names are registered with MMPretrain when it is imported; it is not imported for that.
    """
    # mmengine looks for .mim beside what this names: a module of ours, as the name of an editable or uninstalled
    # distribution leads nowhere.
    MODULE2PACKAGE[PACKAGE] = f'{PACKAGE}.registry'
    if _HUB in sys.modules:
        register_models(sys.modules[_HUB])
    elif not any(isinstance(finder, _HubFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _HubFinder())


def register_models(hub) -> None:
    """Add the names of our classifiers to ``ModelHub``; folders of other toolkits (``mmdet``) are left out."""
    for metafile in sorted((MIM / 'configs').glob('*/metafile.yml')):
        if not metafile.parent.name.startswith('mm'):
            hub.ModelHub.register_model_index(metafile, config_prefix=MIM)


class _HubFinder(MetaPathFinder):
    """Waits for the import of ``mmpretrain.apis.model``, once, to register our models at its end."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != _HUB:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(self._load, spec.loader.exec_module)
        return spec

    def _load(self, exec_module, module) -> None:
        exec_module(module)
        try:
            register_models(module)
        except Exception as error:  # MMPretrain works without our names
            FAILURES['mmpretrain'] = error
