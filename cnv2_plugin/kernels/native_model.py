"""Puts the native kernels into a model."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor, nn

from ..graph.builder import chain_to_graph, is_chain_of_stages
from ..graph.model_parts import Part, parts, replace_module
from ..graph.ops import dtype_device
from ..layers.known import is_changed, is_exactly
from ..models.base import SparseModelMixin
from ..models.condense import condense
from ..models.modes import in_eval
from .compiler import compile_graph
from .library import load
from .operator import native_stages
from .placement import UnsupportedError
from .program import Program


class DeferredConv2d(nn.Conv2d):
    """A first convolution that the kernels behind it compute: passes images on, its weight says what it takes."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 1, bias=False, device='meta')
        self.weight = conv.weight
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, C, H, W)`` as it is."""
        return x


class NativeStages(nn.Module):
    """A part of a network that runs in the native kernels: float32 on the CPU, inference only.

    The program stands in the buffer ``plan``, as files have always named it; ``weights`` are given where several share
    them. One that computes the same as others from their weights is not ``saved``, nor told of among implementations.
    """

    weights: Tensor
    plan: Tensor

    def __init__(self, program: Program, weights: Optional[Tensor] = None, saved: bool = True) -> None:
        super().__init__()
        self.register_buffer('weights', program.weights() if weights is None else weights, saved)
        self.register_buffer('plan', program.words(), saved)
        self.shape = program.shape
        self.choices = {'.': 'native'} if saved else {}

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the result of the part."""
        return native_stages(x, self.weights, self.plan, self.shape)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Save weights of their own: those of a trunk and of a head lie side by side, which safetensors refuses."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if f'{prefix}weights' in destination:
            destination[f'{prefix}weights'] = destination[f'{prefix}weights'].clone()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load a program of another length too: other versions may write the same network in other words."""
        for name in ('weights', 'plan'):
            given = state_dict.get(f'{prefix}{name}')
            if isinstance(given, Tensor) and given.ndim == 1 and given.shape != self.get_buffer(name).shape:
                setattr(self, name, torch.empty_like(given, device=self.get_buffer(name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f'weights={self.weights.numel()}, words={self.plan.numel()}, out_channels={self.shape[0]}'


class NativeLinear(NativeStages):
    """A linear layer with weights of bytes in the native kernels."""

    def __init__(self, linear: nn.Linear) -> None:
        program = Program(linear.in_features, linear.out_features)
        src, dst = (
            program.add_map(width, slot) for slot, width in enumerate((linear.in_features, linear.out_features))
        )
        program.load(src)
        program.linear(src, dst, linear.weight, linear.bias, in_bytes=True)
        program.store(dst, range(linear.out_features))
        super().__init__(program)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_features)`` to ``(N, out_features)``."""
        return super().forward(x.unsqueeze(-1).unsqueeze(-1)).flatten(1)


def native_program(chain: Iterable[tuple[str, nn.Module]], channels: int) -> Optional[Program]:
    """Compile condensed modules that follow one another; None where the kernels do not compute one of them exactly."""
    chain = list(chain)
    if any(is_changed(module) for _, module in chain):
        return None
    flat = [
        part
        for name, module in chain
        for part in (module.named_children() if is_chain_of_stages(module) else [(name, module)])
    ]
    try:
        return compile_graph(chain_to_graph(flat, channels)[0])
    except UnsupportedError:
        return None


def native_model(
    model: nn.Module,
    input_size: tuple[int, int, int],
    choices: Optional[Mapping[str, str]] = None,
    example: Optional[Tensor] = None,
) -> nn.Module:
    """Return the condensed model with all parts that the native kernels compute in their operators.

    Arguments are as for :func:`cnv2_plugin.deploy.lower`; the kernels offer no ``choices``.

    Raises:
        ValueError: there are choices, the model is not float32 on the CPU, or the kernels compute no part of it.
        KernelsMissingError: the kernels are not built.
    """
    load()
    if choices:
        raise ValueError('choices are among standard operators; leave them out with the native kernels.')
    dtype, device = dtype_device(model)
    if (dtype, device) != (torch.float32, torch.device('cpu')):
        raise ValueError(
            f'the model is {dtype} on {device}; the native kernels take float32 on the CPU, so convert it with '
            f'.float().cpu(), or take another runtime.'
        )
    made = in_eval(condense(model))
    if isinstance(made, SparseModelMixin):
        name, last = made.parts()[-1]
        if isinstance(last, nn.Linear) and is_exactly(last, nn.Linear) and hasattr(last, 'input_limits'):
            replace_module(made, name, NativeLinear(last))
    found = parts(made, input_size, example)
    for name, module in list(made.named_modules()):
        if is_exactly(module, nn.Dropout):  # costs a call
            replace_module(made, name, nn.Identity())
    if isinstance(made, SparseModelMixin) and (classifier := _Classifier.of(made)) is not None:
        if _make_whole(made, classifier):
            return made
        program = native_program(classifier.head, _first_conv(classifier.head).in_channels)
        if program is not None:
            classifier.replace_head(made, program)
    changed = 0
    for part in found:
        module = _with_surroundings(made, part)
        if module is not None:
            changed += 1
            made = replace_module(made, part.name, module)
    if not changed:
        raise ValueError(
            'the native kernels compute no part of this model (they know ReLU, ReLU6 and hard-swish, batch '
            'normalisation and 3x3 convolutions); take another runtime.'
        )
    return made


def _first_conv(parts: Iterable[tuple[str, nn.Module]]) -> nn.Conv2d:
    return next(module for _, part in parts for module in part.modules() if isinstance(module, nn.Conv2d))


def _with_surroundings(model: nn.Module, part: Part) -> Optional[NativeStages]:
    """A part in the kernels, with the stem in front of a trunk's first stage and the normalisation behind its last."""
    trunks = (module for module in model.modules() if isinstance(module, SparseModelMixin))
    trunk = next((t for t in trunks if part.module in [t.stages, *t.get_submodule('stages').children()][:2]), None)
    if trunk is not None and _feeds_stages(trunk):
        stem, (name, final) = trunk.parts()[0], _final(trunk)
        conv, middle = _first_conv([stem]), ('stages', part.module)
        normalises = part.module is trunk.stages and not any(isinstance(m, nn.Conv2d) for m in final.modules())
        program = native_program([stem, middle, (name, final)], conv.in_channels) if normalises else None
        if program is not None:
            trunk.add_module(name, nn.Identity())
        else:
            program = native_program([stem, middle], conv.in_channels)
        if program is not None:
            trunk.add_module('stem', DeferredConv2d(conv))
            return NativeStages(program)
    program = native_program([(part.name, part.module)], part.input_shape[1])
    return None if program is None else NativeStages(program)


def _feeds_stages(trunk: SparseModelMixin) -> bool:
    """Whether a trunk's stages get what its stem gives, so that they can compute the stem themselves."""
    ours = next(i for i, kind in enumerate(type(trunk).__mro__) if kind.__module__.startswith('cnv2_plugin.'))
    return is_exactly(trunk.stages, nn.Sequential) and not _overrides(trunk, ours)


def _final(trunk: SparseModelMixin) -> tuple[str, nn.Module]:
    """The last part of a trunk."""
    return next(part for part in trunk.parts() if part[0] == trunk.final_attribute)


class _Classifier(NamedTuple):
    """The parts of a model that says them up to its classifier: of the trunk, of the head, and those that flatten."""

    trunk: list[tuple[str, nn.Module]]
    head: list[tuple[str, nn.Module]]
    rest: list[tuple[str, nn.Module]]

    @classmethod
    def of(cls, model: SparseModelMixin) -> Optional['_Classifier']:
        """None where a model has no head, or none but pooling, or computes something else than it says."""
        if not _is_what_it_says(model):
            return None
        said = model.parts()
        begin = said.index(_final(model)) + 1
        end = next((i for i, (_, module) in enumerate(said) if type(module) is nn.Flatten), begin)
        head = said[begin:end]
        around = {name.rpartition('.')[0] for name, _ in head} - {''}
        if not all(_only_holds(model.get_submodule(name), [module for _, module in head]) for name in around):
            return None
        return cls(said[:begin], head, said[end:]) if any(isinstance(m, nn.Conv2d) for _, m in head) else None

    def replace_head(self, model: nn.Module, program: Program, weights: Optional[Tensor] = None) -> None:
        """Put one operator in the place of the head's modules."""
        for name, _ in self.head:
            replace_module(model, name, nn.Identity())
        replace_module(model, self.head[0][0], NativeStages(program, weights))


def _only_holds(module: nn.Module, parts: list[nn.Module]) -> bool:
    """Whether a module around parts of a head, such as timm's pool, does nothing but call them."""
    others = [child for child in module.children() if child not in parts]
    known = type(module).__module__.partition('.')[0] in ('timm', 'torch', __package__.partition('.')[0])
    return known and not is_changed(module) and all(type(child) is nn.Identity for child in others)


def _is_what_it_says(model: SparseModelMixin) -> bool:
    """Whether no subclass or object changes what a model computes without saying other parts."""
    return not _overrides(model, next(i for i, kind in enumerate(type(model).__mro__) if 'parts' in vars(kind)))


def _overrides(model: SparseModelMixin, classes: int) -> bool:
    """Whether the object, or one of the first classes in its order, has a way of its own through the network."""
    methods = ('forward', 'forward_features', 'forward_head', 'forward_stem', 'forward_final')
    return any(name in vars(where) for where in (model, *type(model).__mro__[:classes]) for name in methods)


def _make_whole(model: SparseModelMixin, parts: _Classifier) -> bool:
    """Let one operator compute all in front of the classifier, and two others trunk and head on slices of its weights.

    Does nothing, and returns False, where the kernels do not compute all of it, where something else stands in front of
    the classifier, or where anything in the model is changed.
    """
    if not _feeds_stages(model) or any(map(is_changed, model.children())):
        return False
    if [type(module) for _, module in parts.rest[:-1]] != [
        nn.Flatten,
        nn.Identity,
    ]:
        return False
    conv = _first_conv(parts.trunk)
    whole = native_program([*parts.trunk, *parts.head], conv.in_channels)
    if whole is None:
        return False
    trunk, head = whole.cut()
    weights = whole.weights()
    parts.replace_head(model, head, weights[trunk.floats :])
    model.add_module('stem', DeferredConv2d(conv))
    model.add_module('stages', NativeStages(trunk, weights[: trunk.floats]))
    model.add_module(model.final_attribute, nn.Identity())
    model.fused = NativeStages(whole, weights, saved=False)
    model.register_load_state_dict_post_hook(_forget_whole)
    return True


def _forget_whole(model: nn.Module, incompatible_keys: object) -> None:
    """Compute by trunk and head from now on: they hold what was loaded, the program of the whole is not in any file."""
    model.register_module('fused', None)
