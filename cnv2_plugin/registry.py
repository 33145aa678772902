"""The scope ``cnv2_plugin`` of mmengine's registries; mmengine imports this module by its name.

mmengine builds what ``_base_ = 'cnv2_plugin::...'`` defines in the scope of this package. A type without prefix is
looked up here, then in MMPretrain, then in mmengine, so that a base builds the same model as the file itself does.
Bases for other toolkits name their scope with ``_scope_``.
"""

from functools import cache
from importlib import import_module
from typing import Optional

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry

SCOPE = 'cnv2_plugin'
LIBRARY = 'mmpretrain'


class PluginRegistry(Registry):
    """A child of one of mmengine's root registries that finds this package's types, and MMPretrain's by bare name."""

    def get(self, key: str) -> Optional[type]:
        """Return the registered class or function, or None.

        Args:
            key: a bare name, or one with the prefix of a scope, such as ``mmdet.FPN``.
        """
        ours = self.module_dict.get(key) or self.parent.module_dict.get(key)
        if getattr(ours, '__module__', '').partition('.')[0] == SCOPE:
            return ours
        _import_library()
        return self.parent.children.get(LIBRARY, self.parent).get(key)


@cache
def _import_library() -> None:
    try:
        import_module(f'{LIBRARY}.registry')
    except Exception:  # missing or broken: mmengine's own types remain
        return


REGISTRIES = {
    name: PluginRegistry(root.name, parent=root, scope=SCOPE, locations=[f'{SCOPE}.toolkits.openmmlab'])
    for name, root in vars(mmengine_registry).items()
    if isinstance(root, Registry)
}
"""One registry for each of mmengine's root registries, under the same name."""

MODELS, HOOKS = REGISTRIES['MODELS'], REGISTRIES['HOOKS']
