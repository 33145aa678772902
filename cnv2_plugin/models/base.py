"""Shared by every trunk: its stages, the check of its images, its parts, condensing, and initial weights."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Optional

import torch
from torch import Tensor, nn
from torch.types import Device
from torch.utils.checkpoint import checkpoint

from ..archs import Arch
from ..layers import GroupSparseConv2d, SparseFeatureReactivation
from ..layers.reactivation import ActLayer, NormLayer
from .condense import condense


class ImageSizeError(ValueError):
    """Images are too small for the stages of a network."""


class Condensable(nn.Module):
    """Condenses its group-sparse layers, and knows it.

    Attributes:
        deploy: every sparse layer is condensed.
    """

    deploy: bool

    def switch_to_deploy(self) -> None:
        """Turn every masked layer into its group-convolution form, in place; does nothing the second time.

        Raises:
            UnfinishedPruningError: pruning stages are left; nothing is changed then.
        """
        condense(self, inplace=True)

    @torch.jit.ignore
    def on_condense(self) -> None:
        """Note that every sparse layer is condensed; :func:`cnv2_plugin.deploy.condense` calls it."""
        self.deploy = True


class SparseModelMixin(Condensable):
    """Base of every trunk: it checks its images and names its parts.

    Attributes:
        arch: shape.
        final_attribute: name of the part after the last stage.
        smallest_input: height and width of the smallest images that the stages take.
        stage_strides: stride of each stage's features relative to the images.
        stem: maps images to the first features.
        stages: follow one another.
    """

    arch: Arch
    final_attribute: str
    smallest_input: int
    stem: nn.Module
    stages: nn.Sequential
    stage_strides: list[int]

    def forward_stem(self, x: Tensor) -> Tensor:
        """Map images ``(N, in_chans, H, W)`` to the first features.

        Raises:
            ValueError: the images have another rank, number of channels, device or type than the model takes, or are
                too small for its stages (checked where Python runs, not in scripted, traced or compiled graphs).
        """
        if torch.jit.is_scripting():
            return self.stem(x)
        else:
            return start(self.stem, x, self)

    def keep_stages(self, count: int) -> None:
        """Drop the stages after the first ``count``."""
        self.stages = self.stages[:count]
        self.smallest_input = self.arch.smallest_input(count)

    def parts(self) -> list[tuple[str, nn.Module]]:
        """The modules that the network is a chain of, with their names: stem, each stage, last part, then any head.

        Each maps one tensor to one tensor, and applying them in order to images, in evaluation mode, computes what
        ``forward`` does; what a backbone returns besides (features of inner stages) leaves between two parts. Parts
        that are not there are ``nn.Identity``.
        """
        stages = [f'stages.{name}' for name, _ in self.stages.named_children()]
        return [(name, self.get_submodule(name)) for name in ('stem', *stages, self.final_attribute)]

    def sparse_layers(self) -> Iterator[GroupSparseConv2d]:
        """The group-sparse layers in forward order."""
        return (m for m in self.modules() if isinstance(m, GroupSparseConv2d))


class LayerStage(nn.Module):
    """Layers that follow one another; with ``grad_checkpointing`` they are computed again for their gradients.

    Args:
        layers: the layers.
        out_channels: channels of the last one.
    """

    grad_checkpointing: bool

    def __init__(self, layers: Iterable[nn.Module], out_channels: int) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.layers = nn.ModuleList(layers)
        self.out_channels = out_channels

    def run_layers(self, x: Tensor) -> Tensor:
        """Map features ``(N, C, H, W)`` through every layer."""
        for layer in self.layers:
            if self.grad_checkpointing and x.requires_grad and not torch.jit.is_scripting():
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        return x


class LayerTrunk(SparseModelMixin):
    """A trunk whose stages are :class:`LayerStage`; a family names their class and makes what is around them.

    Attributes:
        stage_class: of the stages.
        make_stem: method that makes the stem, and tells its channels and the stride of the first stage's features.
        make_final: method that makes the part after the last stage, and tells its channels.
        stage_channels: channels that leave each stage.
        num_features: channels after the last part.

    Args:
        arch: shape.
        in_chans: input channels.
        norm_layer: makes a normalisation from a channel count; batch normalisation by default.
        act_layer: makes every activation; by default the family's own.
        deploy: build the group-convolution form.
        zero_init_sfr: reactivation starts at 0, so that it changes no feature before the first step.
    """

    stage_class: ClassVar[Callable[..., LayerStage]]
    make_stem: Callable[..., tuple[nn.Module, int, int]]
    make_final: Callable[..., tuple[nn.Module, int]]

    def __init__(
        self,
        arch: Arch,
        in_chans: int = 3,
        norm_layer: Optional[NormLayer] = None,
        act_layer: Optional[ActLayer] = None,
        deploy: bool = False,
        device: Device = None,
        dtype: Optional[torch.dtype] = None,
        zero_init_sfr: bool = False,
        layer_options: Optional[dict[str, Any]] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        options: dict[str, Any] = dict(norm_layer=norm_layer, act_layer=act_layer, device=device, dtype=dtype)
        self.arch, self.deploy = arch, deploy
        self.stem, channels, stride = self.make_stem(in_chans, **options)
        stages: list[LayerStage] = []
        for i in range(arch.num_stages):
            stages.append(self.stage_class(channels, i, arch, deploy=deploy, **options, **(layer_options or {})))
            channels = stages[i].out_channels
        self.stages = nn.Sequential(*stages)
        self.stage_channels: list[int] = [stage.out_channels for stage in stages]
        self.stage_strides: list[int] = [stride * 2**i for i in range(len(stages))]
        final, self.num_features = self.make_final(channels, **options)
        setattr(self, self.final_attribute, final)
        self.smallest_input = arch.smallest_input(arch.num_stages)
        self.apply(init_weights)
        if zero_init_sfr:
            start_reactivation_at_zero(self)


def has_values(x: Tensor) -> bool:
    """Whether a tensor can be checked: not while a graph is traced, compiled or exported."""
    return isinstance(x, Tensor) and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def start(part: nn.Module, x: Tensor, model: SparseModelMixin) -> Tensor:
    """Run the part of a model that reads the images; where they do not fit, say why.

    Its hooks and wrappers may convert, move or resize what it is given, so images are judged only where it failed, or
    where the stem's features are none that the stages take.
    """
    if not has_values(x):
        return part(x)
    if 'torch_pruning' in sys.modules:
        _warn_of_cutting(part, model)
    try:
        features = part(x)
    except (RuntimeError, ValueError):
        _check_images(x, model)
        raise
    if part is model.stem:
        needed = -(-model.smallest_input // model.stage_strides[0])
        untouched = features is x or features.is_meta  # left to the stages, or not computed
        if untouched or features.ndim != 4 or min(features.shape[2:]) < needed:
            _check_images(x, model)
    return features


def _warn_of_cutting(part: nn.Module, model: nn.Module) -> None:
    """Say beforehand what torch-pruning cannot cut, where it records the graph along which it cuts channels."""
    hooks = (hook for module in part.modules() for hook in module._forward_hooks.values())
    if any(getattr(hook, '__module__', '').startswith('torch_pruning.dependency') for hook in hooks):
        warnings.warn(
            f'torch-pruning knows neither masks nor gathered and shuffled channels and cannot cut '
            f'{type(model).__name__}: name the whole model in ignored_layers, so that only what is around it is cut, '
            f'and prune it with cnv2_plugin.sparsify.StagedSparsifier.',
            stacklevel=3,
        )


def _check_images(x: Tensor, model: SparseModelMixin) -> None:
    """Raise unless images ``(N, C, H, W)`` fit the first convolution and the stages of a model."""
    weight = next((m.weight for m in model.stem.modules() if isinstance(m, nn.Conv2d)), None)
    if weight is None or (weight.is_meta and not x.is_meta):  # a weight that is elsewhere until it is used
        return
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
    check_size(x, model.smallest_input, model.smallest_input, 'the images are')


def check_size(x: Tensor, needed: int, smallest_input: int, given: str) -> None:
    """Raise ``ImageSizeError`` where features or images ``(N, C, H, W)`` have less than the needed height or width."""
    if has_values(x) and min(x.shape[-2:]) < needed:
        raise ImageSizeError(
            f'{given} {x.shape[-2]} x {x.shape[-1]} pixels; the smallest that this network takes is {smallest_input} x '
            f'{smallest_input}, so resize them or take fewer stages.'
        )


def init_weights(module: nn.Module) -> None:
    """Initialise as the papers do: convolutions N(0, sqrt(2 / (kh kw O))), normalisation 1 and 0, biases 0."""
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
