"""What mkdocstrings does not know of our docstrings: Sphinx roles, and ``Example:`` for one example.

Roles such as ``:class:`name``` and ``:func:`~package.name``` become links. One that names nothing is a warning, which
fails the strict build.
"""

import re

import griffe

ROLE = re.compile(r':(class|func|meth|mod|attr|data):`(~?)([\w.]+)`')
EXAMPLE = re.compile(r'^Example:$', re.MULTILINE)
logger = griffe.get_logger('griffe.docstrings')


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object of a package once all of it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **options) -> None:
        """Rewrite all docstrings."""
        self._rewrite(pkg)

    def _rewrite(self, obj: griffe.Object) -> None:
        if obj.docstring:
            text = EXAMPLE.sub('Examples:', obj.docstring.value)
            obj.docstring.value = ROLE.sub(lambda match: self._link(obj, *match.groups()), text)
        for member in obj.members.values():
            if not member.is_alias:
                self._rewrite(member)

    def _link(self, obj: griffe.Object, role: str, short: str, name: str) -> str:
        target = found(obj, name)
        if target is None:
            logger.warning(f'{obj.path}: no {name} is known here')
            return f'`{name}`'
        if role != 'mod':  # where a module has the name of what it holds, the latter is meant
            target = _known(obj.package, f'{target}.{target.rsplit(".", 1)[-1]}') or target
        shown = name.rsplit('.', 1)[-1] if short else name.lstrip('.')
        return f'<autoref optional identifier="{target}"><code>{shown}</code></autoref>'


def found(obj: griffe.Object, name: str) -> str | None:
    """Full path of what a name means in the docstring of an object; names of other packages stay what they are."""
    package = obj.package
    if name.startswith('.'):
        module = obj.module
        parent = module if module.is_init_module else module.parent
        return _known(package, f'{parent.path}{name}')
    if name.startswith(f'{package.path}.'):
        return _known(package, name)
    scope = obj
    while scope is not None:
        if name.split('.')[0] in scope.members:
            return _known(package, f'{scope.path}.{name}')
        scope = scope.parent if not scope.is_module else None
    return name if '.' in name else None


def _known(package: griffe.Module, path: str) -> str | None:
    try:
        return package[path.removeprefix(f'{package.path}.')].canonical_path
    except (KeyError, griffe.AliasResolutionError):
        return None
