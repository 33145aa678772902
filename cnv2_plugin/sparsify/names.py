"""Names of modules, whatever wraps the model."""

_WRAPPER_PREFIXES = ('_orig_mod', 'module')


def plain_name(name: str) -> str:
    """A module's name without what DDP, averaged models and torch.compile put before it."""
    return '.'.join(part for part in name.split('.') if part not in _WRAPPER_PREFIXES)
