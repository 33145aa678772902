"""How every layer of an unknown network is used; tracing a module, and giving it the forward pass of another graph."""

import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, Optional

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from ...layers import GroupSparseConv2d
from ...layers.known import has_hooks, peculiarity, peculiarity_besides_hooks
from ...models.modes import evaluating
from ...models.multiply_adds import counted
from .sites import convolutions_of

_CLASSES: dict[tuple[type[nn.Module], str], type[nn.Module]] = {}
_TRACING_ERRORS = (
    fx.proxy.TraceError, TypeError, RuntimeError, ValueError, AttributeError, LookupError, AssertionError
)  # fmt: skip
Call = tuple[tuple[int, ...], int]
"""Shape of a module's input, and number of its calls."""


class UntraceableError(ValueError):
    """A module's forward pass depends on values or on training mode, or something is attached to what is traced."""


def trace(module: nn.Module, whole: frozenset[nn.Module], example: Tensor) -> fx.Graph:
    """Trace the graph of a module called with one tensor, every node with its ``shape`` in ``meta``.

    The module is left as it is, and runs once on ``example``, in eval mode; ``whole`` modules are not looked into.
    """
    graphs = {}
    for name, inner in _traced_through(module, _Tracer(whole)):
        own = peculiarity(inner) or ('carries hooks' if has_hooks(inner) else '') if name else ''
        if wrong := own or peculiarity_besides_hooks(inner):
            raise UntraceableError(f'{name or "it"} {wrong}, which a traced forward pass would lose; remove that first')
    try:
        with evaluating(module):
            for training in (True, False):
                for m in module.modules():
                    m.training = training
                graphs[training] = _Tracer(whole).trace(module, concrete_args=_defaults(module))
            with torch.no_grad():
                same = _equal(_Shapes(module, graph=graphs[False]).run(example.clone()), module.forward(example))
    except _TRACING_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UntraceableError(f'its forward pass is not a fixed graph ({reason})') from error
    if not same:
        raise UntraceableError(
            'its traced forward pass computes something else, as where code asks for types of values'
        )
    if str(graphs[True]) != str(graphs[False]):
        raise UntraceableError('its own code behaves differently in training mode (outside of layers such as Dropout)')
    return graphs[False]


def _equal(traced: Any, expected: Any) -> bool:
    a, b = tree_leaves(traced), tree_leaves(expected)
    tensors = [pair for pair in zip(a, b) if all(isinstance(value, Tensor) for value in pair)]
    return len(a) == len(b) and all(torch.allclose(x, y, 1e-4, 1e-5, equal_nan=True) for x, y in tensors)


def _traced_through(module: nn.Module, tracer: '_Tracer', name: str = '') -> Iterator[tuple[str, nn.Module]]:
    """A module and those inside whose own forward passes become part of its graph."""
    yield name, module
    for key, child in module.named_children():
        full = f'{name}.{key}' if name else key
        if not tracer.is_leaf_module(child, full):
            yield from _traced_through(child, tracer, full)


def with_forward(module: nn.Module, graph: fx.Graph) -> type[nn.Module]:
    """Make a subclass of a module's class whose forward pass is a graph; set it as ``module.__class__``."""
    graph.lint()
    for node in graph.nodes:
        node.type = None
    code = graph.python_code('self')
    names = {k: f'module:{v.__name__}' if isinstance(v, ModuleType) else v for k, v in code.globals.items()}
    return _class_of(type(module), code.src, names)


def _class_of(base: type[nn.Module], source: str, names: Mapping[str, Any]) -> type[nn.Module]:
    """The class for a generated source; the same one for the same source."""
    key = (base, source)
    if key not in _CLASSES:
        namespace = {name: _resolved(value) for name, value in names.items()}
        exec(compile(source, f'<reactivated {base.__name__}>', 'exec'), namespace)

        def reduce(self: nn.Module, protocol: Any) -> Any:
            if type(self) is not _CLASSES[key]:  # somebody's subclass, which Python copies by itself
                return base.__reduce_ex__(self, protocol)
            return _rebuild, (base, source, names), self.__getstate__()

        members = dict(forward=namespace['forward'], __reduce_ex__=reduce, __module__=base.__module__)
        _CLASSES[key] = type(f'Reactivated{base.__name__}', (base,), members)
    return _CLASSES[key]


def _rebuild(base: type[nn.Module], source: str, names: Mapping[str, Any]) -> nn.Module:
    cls = _class_of(base, source, names)
    return cls.__new__(cls)


def _resolved(value: Any) -> Any:
    is_name = isinstance(value, str) and value.startswith('module:')
    return importlib.import_module(value.removeprefix('module:')) if is_name else value


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Values of all parameters of ``forward`` but the first."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[2:]
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p.default for p in parameters if p.kind in plain and p.default is not p.empty}


class _Tracer(fx.Tracer):
    """Looks into modules with several convolutions, and takes every other as one operation."""

    def __init__(self, whole: frozenset[nn.Module]) -> None:
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, GroupSparseConv2d) or m in self.whole:
            return True
        if isinstance(m, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            return False
        return convolutions_of(m) < 2 or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta['shape'] = tuple(result.shape)
        return result


@dataclass
class Probe:
    """Observations of one forward pass; sizes are those of convolutions, positions of linear layers too, by name."""

    positions: dict[str, int] = field(default_factory=dict)  # of the output, summed over the calls
    input_sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # height and width of the largest input
    outputs: set[str] = field(default_factory=set)  # names of those whose result the network returns as it is
    calls: dict[str, Call] = field(default_factory=dict)  # with one tensor (N, C, H, W), always of one shape
    mult_adds: int = 0  # of the whole pass
    prunable: int = 0  # of which masked layers will save so many once pruned


def probe(model: nn.Module, input_size: tuple[int, int, int]) -> Probe:
    """Run a model on one image ``(C, H, W)`` of zeros, in eval mode, on its own device, and leave it as it is."""
    found = Probe()
    produced: list[tuple[str, Tensor]] = []
    inputs: dict[str, list[Optional[tuple[int, ...]]]] = {}

    def visit(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        single = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and args[0].dim() == 4
        inputs.setdefault(name, []).append(tuple(args[0].shape) if single else None)
        if isinstance(module, GroupSparseConv2d) and not module.deploy:
            share = 1 - module.kept_per_group() / module.num_units
            positions = output.numel() // module.out_channels
            found.prunable += round(module.in_channels * module.out_channels * share) * positions
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and isinstance(output, Tensor):
            channels = module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
            found.positions[name] = found.positions.get(name, 0) + output.numel() // channels
            if isinstance(module, nn.Conv2d):
                found.input_sizes[name] = max(found.input_sizes.get(name, (0, 0)), tuple(args[0].shape[2:]))
            produced.append((name, output))

    with ExitStack() as hooks, evaluating(model):
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_hook(partial(visit, name), with_kwargs=True))
        outputs, found.mult_adds = counted(model, lambda: run(model, input_size))
    results = {id(t) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) for t in (leaf, leaf._base)}
    found.outputs = {name for name, output in produced if id(output) in results}
    found.calls = {n: (shapes[0], len(shapes)) for n, shapes in inputs.items() if shapes[0] and len({*shapes}) == 1}
    return found


def run(model: nn.Module, input_size: tuple[int, int, int]) -> Any:
    """Return the model's outputs for one image of zeros; raise ValueError where it does not take such an image."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    image = torch.zeros(1, *input_size, device=reference.device, dtype=reference.dtype)
    try:
        return model(image)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f'{type(model).__name__} does not run on one image of size {tuple(input_size)} ({error}); give the '
            f'input_size (C, H, W) that it takes.'
        ) from error
