"""Whether a module is exactly what its class says: asked by every conversion before it reads a module's parameters."""

from collections.abc import Iterable
from copy import deepcopy
from inspect import isfunction

import torch
from torch import nn

ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU,
)  # fmt: skip
"""Activations known to treat every element alike."""
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
"""Modules that do nothing in evaluation mode."""
_MAY_DIFFER = {
    '__init__', '__setstate__', '__module__', '__doc__', '__qualname__', '__annotations__', '__dict__', '__weakref__',
    '__parameters__', '__static_attributes__', '__firstlineno__', '__constants__', '__jit_unused_properties__',
    '__repr__', 'extra_repr', 'reset_parameters', '_check_input_dim', '_load_from_state_dict', '_save_to_state_dict',
    '_version', 'train', '__annotate_func__', '__annotations_cache__', '__annotate__',
}  # fmt: skip
"""What a subclass may have of its own and still compute what its base does."""


PARAMETRISED = 'has parametrised weights'


class UnknownModuleError(TypeError):
    """A conversion meets a module that does more than its class says, or whose class it does not know."""


def peculiarity(module: nn.Module) -> str:
    """Say what makes a module compute something else than its class says; '' where nothing does."""
    if module._forward_hooks or module._forward_pre_hooks:
        return 'carries forward hooks'
    return peculiarity_besides_hooks(module)


def peculiarity_besides_hooks(module: nn.Module) -> str:
    """As :func:`peculiarity`, of a module whose hooks stay."""
    if 'parametrizations' in module._modules:
        return PARAMETRISED
    if any(isfunction(getattr(type(module), name, None)) for name in vars(module)):
        return 'has a method of its own on the object'
    return ''


def has_hooks(module: nn.Module) -> bool:
    """Whether anything listens to a module's forward or backward pass."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def is_changed(module: nn.Module) -> bool:
    """Whether anything in a module computes something else than its class says."""
    return any(map(peculiarity, module.modules()))


def is_class(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module's class is one of these, or a subclass that computes nothing in another way."""
    order = type(module).__mro__
    return any(kind in order and not any(_differs(c, kind) for c in order[: order.index(kind)]) for kind in kinds)


def is_exactly(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module computes exactly what one of these classes says."""
    return is_class(module, *kinds) and not peculiarity(module)


def _differs(subclass: type, kind: type) -> bool:
    own = {name: value for name, value in vars(subclass).items() if name not in _MAY_DIFFER}
    return any(hasattr(kind, name) or isinstance(value, property) for name, value in own.items())


def treats_channels_alike(module: nn.Module, index: torch.Tensor, channels: int) -> bool:
    """Whether a module such as an activation gives selected channels what it gives them among all: known, or tried."""
    if is_changed(module):
        return False
    if is_class(module, *ELEMENTWISE, *DROPOUTS, nn.Identity):
        return True
    tried = deepcopy(module).eval().cpu().double()
    x = torch.randn(2, channels, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    try:
        with torch.no_grad():
            whole, selected = tried(x.clone()), tried(x[:, index.cpu()])
        return whole.shape == x.shape and torch.allclose(selected, whole[:, index.cpu()], 1e-6, 1e-6)
    except Exception:  # whatever another class raises: it does not take the selected channels as all of them
        return False


def refuse(name: str, module: nn.Module, wrong: str) -> UnknownModuleError:
    """The refusal of a module of that name in its model; ``wrong`` says what it does."""
    return UnknownModuleError(
        f'{name or "the module"} ({type(module).__name__}) {wrong}, so a conversion could not be proven exact; remove '
        f'or merge that first, or put a module that PyTorch or this package defines there.'
    )


def check_exact(parts: Iterable[tuple[str, nn.Module, tuple[type[nn.Module], ...]]]) -> None:
    """Raise ``UnknownModuleError`` unless each named module computes exactly what one of its classes says."""
    for name, module, kinds in parts:
        if not is_exactly(module, *kinds):
            wanted = ' or '.join(kind.__name__ for kind in kinds)
            raise refuse(name, module, peculiarity(module) or f'is not exactly {wanted}')
