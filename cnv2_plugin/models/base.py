"""What every trunk shares: deployment, per-stage features and gradient checkpointing."""

from collections.abc import Iterator
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..layers import GroupSparseConv2d, SparseFeatureReactivation
from .condense import condense


class ImageSizeError(ValueError):
    """Images are too small for the stages of a network."""


class SparseModelMixin(nn.Module):
    """Adds ``switch_to_deploy`` to a model made of group-sparse layers, and a check of its images."""

    deploy: bool
    smallest_input: int
    final_attribute: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Check the images where Python runs (not in compiled, exported or traced graphs), then run the model.

        Raises:
            ValueError: the images have another rank, number of channels, device or type than the model takes.
            ImageSizeError: they are too small for its stages.
        """
        if args and isinstance(args[0], Tensor) and not torch.compiler.is_compiling():
            check_images(args[0], _first_convolution(self._modules['stem']).weight)
            try:
                return super().__call__(*args, **kwargs)
            except ImageSizeError as error:
                height, width = args[0].shape[-2:]
                raise too_small(f'the images are {height} x {width} pixels', self.smallest_input) from error
        return super().__call__(*args, **kwargs)

    def switch_to_deploy(self) -> None:
        """Turn every masked layer into its group-convolution form, in place; does nothing the second time.

        Raises:
            UnfinishedPruningError: pruning stages are left; nothing is changed then.
        """
        condense(self, inplace=True)

    def parts(self) -> list[tuple[str, nn.Module]]:
        """The modules that the network is a chain of, with their names: stem, each stage, last part, then any head.

        Each maps one tensor to one tensor, and applying them in order to images, in evaluation mode, computes what
        ``forward`` does; what a backbone returns besides (features of inner stages) leaves between two parts. Parts
        that are not there are ``nn.Identity``.
        """
        stages = [f'stages.{name}' for name, _ in self.get_submodule('stages').named_children()]
        return [(name, self.get_submodule(name)) for name in ('stem', *stages, self.final_attribute)]

    def sparse_layers(self) -> Iterator[GroupSparseConv2d]:
        """The group-sparse layers in forward order."""
        return (m for m in self.modules() if isinstance(m, GroupSparseConv2d))


def _first_convolution(stem: Optional[nn.Module]) -> nn.Conv2d:
    if isinstance(stem, nn.Conv2d):
        return stem
    assert stem is not None
    return next(module for module in stem.modules() if isinstance(module, nn.Conv2d))


def too_small(given: str, smallest: int) -> ImageSizeError:
    """The error about images of a size that the stages cannot halve.

    Args:
        given: what the images are.
        smallest: height and width of the smallest that fit.
    """
    return ImageSizeError(
        f'{given}; the smallest that this network takes is {smallest} x {smallest}, so resize them or take fewer '
        f'stages.'
    )


def check_images(x: Tensor, weight: Tensor) -> None:
    """Raise unless images fit the first convolution.

    Args:
        x: images, ``(N, C, H, W)``.
        weight: of the first convolution.

    Raises:
        ValueError: they do not; says what they are and what is accepted.
    """
    if x.ndim != 4 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f'the images have the shape {tuple(x.shape)}; this model takes (N, {weight.shape[1]}, H, W), so stack them '
            f'into a batch or build the model for their channels.'
        )
    if x.device != weight.device:
        raise ValueError(f'the images are on {x.device} but the model on {weight.device}; move one of them with .to().')
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(
            f'the images are {x.dtype} but the model {weight.dtype}; convert one of them with .to(), or use autocast.'
        )


def init_weights(module: nn.Module) -> None:
    """Initialise as the papers do: convolutions N(0, sqrt(2 / (kh kw O))), normalisation 1 and 0, biases 0.

    Reactivation starts with a BN weight of 1 too: with weight and bias 0 before a ReLU it would never learn.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def start_reactivation_at_zero(model: nn.Module) -> None:
    """Set the convolutions of every reactivation to 0: at first it changes no feature, and learns from the first step.

    The convolution, not the normalisation in front: with weight and bias 0 before a ReLU it would never learn.
    """
    for layer in model.modules():
        if isinstance(layer, SparseFeatureReactivation):
            nn.init.zeros_(layer.conv.weight)
