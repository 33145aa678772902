"""Whether a module is exactly what its class says: asked by every conversion before it reads a module's parameters."""

from collections.abc import Iterable
from copy import deepcopy
from inspect import isfunction
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

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
_DEVIATIONS = (-1e3, -10.0, -1.0, -0.1, 0.1, 1.0, 10.0, 1e3)
"""Distances of the trial features from the running mean, in standard deviations."""
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


def is_batch_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether a module normalises by batch statistics and does nothing else.

    SyncBN does, timm's ``SplitBatchNorm2d`` and every ``FrozenBatchNorm2d``; ``BatchNormAct2d`` only with
    ``apply_act=False``. A class with a ``forward`` of its own is tried: in evaluation mode it has to compute what its
    statistics and weights say.
    """
    known = isinstance(module, _BatchNorm) or _is_frozen(module)
    if not known or peculiarity(module) not in ('', PARAMETRISED):
        return False
    return is_class(module, _BatchNorm, nn.SyncBatchNorm) or _computes_batch_norm(module)


def _is_frozen(module: nn.Module) -> bool:
    """Whether a module looks like torchvision's ``FrozenBatchNorm2d``: all that a normalisation has, as buffers."""
    names = {name for name, _ in module.named_buffers()} - {'num_batches_tracked'}
    return names == {'weight', 'bias', 'running_mean', 'running_var'} and isinstance(
        getattr(module, 'eps', None), float
    )


@torch.no_grad()
def _computes_batch_norm(norm: Any) -> bool:
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None or mean.is_meta:
        return False
    spread = torch.tensor(_DEVIATIONS, dtype=mean.dtype, device=mean.device)
    x = (mean[:, None] + (var + norm.eps).sqrt()[:, None] * spread).view(1, len(mean), 2, -1)
    expected = batch_norm(x, mean, var, norm.weight, norm.bias, eps=norm.eps)
    found = deepcopy(norm).eval().forward(x)  # no hooks: these are no features of an image
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def check_norm(norm: nn.Module, name: str = 'norm') -> None:
    """Raise ``UnknownModuleError`` unless a module of that name is batch normalisation and nothing else."""
    if not is_batch_norm(norm):
        raise UnknownModuleError(
            f'Only batch normalisation can be condensed, but {name} normalises by {type(norm).__name__}'
            f'{" that " * bool(peculiarity(norm))}{peculiarity(norm)}; build the model with '
            f'norm_layer=torch.nn.BatchNorm2d and nothing more on it, and give an activation as act_layer.'
        )


def gather_norm(norm: nn.Module, index: Tensor) -> nn.Module:
    """Batch normalisation of the gathered channels; SyncBN and the like become plain, what is frozen stays so."""
    check_norm(norm)
    if not isinstance(norm, _BatchNorm):
        frozen: Any = deepcopy(norm)
        for name, buffer in norm.named_buffers():
            setattr(frozen, name, buffer[index] if buffer.ndim else buffer.clone())
        if hasattr(norm, 'num_features'):
            setattr(frozen, 'num_features', index.numel())  # noqa: B010
        return frozen
    reference = norm.weight if norm.affine else norm.running_mean
    gathered = nn.BatchNorm2d(
        index.numel(), norm.eps, norm.momentum, norm.affine, norm.track_running_stats,
        device=index.device, dtype=None if reference is None else reference.dtype,
    )  # fmt: skip
    for name, target in [*gathered.named_parameters(), *gathered.named_buffers()]:
        source = getattr(norm, name)
        with torch.no_grad():
            target.copy_(source[index] if source.ndim else source)
        target.requires_grad_(source.requires_grad)
    return gathered.train(norm.training)
