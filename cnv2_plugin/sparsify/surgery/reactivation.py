"""Sparse feature reactivation (CondenseNetV2, section 3.2) for networks that were not built with it."""

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch import fx, nn

from ...layers import SparseFeatureReactivation, kept_units
from .choice import LatencyModel, Target, choose_reactivations, latency_for
from .learned_groups import MIN_CHANNELS, Patterns, check_whole_numbers, groups_for, name_filter
from .report import ReactivationPlan, ReactivationReport
from .sites import KINDS, Site, called, concatenated, convolutions_of, find_sites
from .tracing import Call, UntraceableError, probe, trace, with_forward


class AddedReactivation(SparseFeatureReactivation):
    """Reactivation whose convolution starts at zero: it changes nothing at first, and learns from the first step on.

    The normalisation in front starts at weight 1, so the convolution's weights get a gradient at once. A state dict
    without any of its keys, such as that of the original network, leaves it as it is.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        nn.init.zeros_(self.conv.weight)

    def reset_parameters(self) -> None:
        """Start again, without any effect on the network."""
        super().reset_parameters()
        nn.init.zeros_(self.conv.weight)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if not any(key.startswith(prefix) for key in state_dict):
            state_dict.update({f'{prefix}{key}': value for key, value in self.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *rest)


def add_reactivation(
    model: nn.Module,
    groups: int = 8,
    factor: int = 8,
    include: Patterns = None,
    exclude: Patterns = None,
    kinds: Iterable[str] = KINDS,
    min_channels: int = MIN_CHANNELS,
    input_size: tuple[int, int, int] = (3, 224, 224),
    target: Target = 'multiply-adds',
    at_most: Optional[float] = None,
    latency: Optional[LatencyModel] = None,
) -> ReactivationReport:
    """Let later features of a network update the earlier ones that it reuses, in place.

    Wherever the network concatenates old features with new ones computed from them, keeps one half of a split, or adds
    a shortcut, the new features ``f`` first update the old ones: ``old + SFR(f)``. The network computes exactly what it
    did until the new layers have learnt. They are pruned and condensed like every other of this package, and state
    dicts of the original network load.

    Modules are traced (``torch.fx``); each module with such a place keeps its class (a subclass of it), attributes and
    parameter names, and gets the changed forward pass.

    Args:
        model: any network of images.
        groups: number of groups; a layer whose input channels it does not divide gets the largest number that does.
        factor: sparse factor; every group updates ``ceil(channels / factor)`` of the earlier features.
        include: shell-style patterns of names of modules in which features are reactivated; all by default.
        exclude: patterns of modules left alone.
        kinds: kinds of reuse, of ``'dense'``, ``'split'``, ``'cross-stage'`` and ``'residual'``.
        min_channels: fewest channels of later and of earlier features.
        input_size: ``(C, H, W)`` of the image that the network is traced with.
        target: what ``at_most`` limits: ``'multiply-adds'`` or ``'latency'``.
        at_most: share of the dense network's multiply-adds or latency that the network may take with its reactivations,
            such as 1.05, or 0.8 after :func:`~cnv2_plugin.sparsify.to_learned_groups` came down to 0.75 (learned groups
            count as pruned). The cheapest come first; what would go beyond is not added. By default all are.
        latency: what tells the latency, for ``target='latency'``: :class:`cnv2_plugin.deploy.RuntimeLatency` measures
            it in a runtime.

    Returns:
        Layers, refusals, multiply-adds and latency; print it for a summary.

    Raises:
        ValueError: if no features are reused in a way that can be traced (says where and why), or an argument does not
            fit; nothing is changed then.

    Example:
        >>> model = timm.create_model('densenet121', pretrained=True)
        >>> print(add_reactivation(model, groups=8, factor=8))
    """
    check_whole_numbers(groups=(groups, 2), factor=(factor, 2), min_channels=(min_channels, 1))
    teller = latency_for(target, at_most, latency)
    kinds = tuple(kinds)
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f'kinds is {kinds!r}; it takes any of {", ".join(map(repr, KINDS))}.')
    chosen = name_filter(include, exclude, [name for name, _ in model.named_modules()])
    seen = probe(model, input_size)

    def change(network: nn.Module, wanted: Optional[Collection[str]] = None) -> _Changes:
        changes = _Changes(groups, factor, kinds, min_channels, wanted)
        changes.collect(network, chosen, seen.calls)
        return changes

    def changed(wanted: Collection[str]) -> nn.Module:
        copy = deepcopy(model)
        change(copy, wanted).apply()
        return copy

    every = change(model)
    if not every.plans:
        raise ValueError(_nothing_to_do(model, every.refused))
    report = ReactivationReport(tuple(every.plans), every.refused, seen.mult_adds)
    report = choose_reactivations(model, report, seen, input_size, at_most, teller, changed)
    if len(report.layers) == len(every.plans):
        every.apply()
    elif report.layers:
        change(model, {plan.name for plan in report.layers}).apply()
    return report


@dataclass
class _Changes:
    """Collects the modules that get wanted layers, and the class and layers of each, to change them all at once."""

    groups: int
    factor: int
    kinds: tuple[str, ...]
    min_channels: int
    wanted: Optional[Collection[str]]
    plans: list[ReactivationPlan] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    modules: list[tuple[nn.Module, type[nn.Module], dict[str, AddedReactivation]]] = field(default_factory=list)

    def collect(self, model: nn.Module, chosen: Callable[[str], bool], calls: Mapping[str, Call]) -> None:
        """Look at all chosen modules, inner ones first."""
        done: set[nn.Module] = set()
        for name, module in _inside_out(model):
            if name in calls and chosen(name):
                try:
                    if self._add(name, module, frozenset(done), calls[name]):
                        done.add(module)
                except UntraceableError as error:
                    self.refused[name or type(model).__name__] = str(error)
        inside = tuple({f'{plan.name.rpartition(".")[0]}.' for plan in self.plans if '.' in plan.name})
        self.refused = {name: reason for name, reason in self.refused.items() if not name.startswith(inside)}

    def apply(self) -> None:
        """Change the modules."""
        for module, cls, layers in self.modules:
            for key, layer in layers.items():
                module.add_module(key, layer)
            module.__class__ = cls

    def _add(self, name: str, module: nn.Module, done: frozenset[nn.Module], call: Call) -> bool:
        shape, calls = call
        parameter = next(module.parameters())
        options: dict[str, Any] = dict(device=parameter.device, dtype=parameter.dtype)
        graph = trace(module, done, torch.randn(shape, **options))
        sites = [site for site in find_sites(graph, module) if self._fits(site, module)]
        layers: dict[str, AddedReactivation] = {}
        rewritten: dict[tuple[fx.Node, ...], fx.Node] = {}
        for i, site in enumerate(sites):
            channels, old = _widths(site)
            key = f'reactivation_{i}'
            full = f'{name}.{key}' if name else key
            groups, size = groups_for(channels, self.groups), tuple(site.node.meta['shape'][2:])
            mult_adds = kept_units(old, self.factor, self.factor - 1) * channels * shape[0] * size[0] * size[1] * calls
            self.plans.append(ReactivationPlan(full, site.kind, channels, old, groups, self.factor, mult_adds, size))
            if self.wanted is None or full in self.wanted:
                layers[key] = AddedReactivation(channels, old, groups, self.factor, **options).train(module.training)
                _insert(graph, site, key, rewritten)
        if layers:
            self.modules.append((module, with_forward(module, graph), layers))
        return bool(sites)

    def _fits(self, site: Site, module: nn.Module) -> bool:
        widths = _widths(site)
        if site.kind not in self.kinds or min(widths, default=0) < self.min_channels:
            return False
        return groups_for(widths[0], self.groups) > 1 and not _overwritten(site, module)


def _insert(graph: fx.Graph, site: Site, key: str, rewritten: dict[tuple[fx.Node, ...], fx.Node]) -> None:
    """Replace a concatenation or addition by one whose earlier side is reactivated, and note it in ``rewritten``."""
    with graph.inserting_before(site.node):
        update = graph.call_module(key, (site.later,))
        if site.kind == 'dense' and len(site.earlier) > 1:
            old = rewritten.get(site.earlier) or graph.call_function(torch.cat, (list(site.earlier), 1))
            new = graph.call_function(torch.cat, ([graph.call_function(operator.add, (old, update)), site.later], 1))
            rewritten[site.earlier + (site.later,)] = new
        else:
            reactivated = graph.call_function(operator.add, (site.earlier[0], update))
            replace: dict[object, fx.Node] = {site.earlier[0]: reactivated}
            if site.kind == 'residual':
                new = graph.call_function(operator.add, tuple(replace.get(a, a) for a in site.node.args))
            else:
                tensors = concatenated(site.node)
                new = graph.call_function(torch.cat, ([replace.get(t, t) for t in tensors], 1))
                rewritten[tensors] = new
    new.meta.update(site.node.meta)
    site.node.replace_all_uses_with(new)
    graph.erase_node(site.node)


def _widths(site: Site) -> tuple[int, ...]:
    """Channels of the later and of the earlier features; empty where they differ in size."""
    shapes = [node.meta['shape'] for node in (site.later, *site.earlier)]
    if any(shape[2:] != shapes[0][2:] for shape in shapes):
        return ()
    return shapes[0][1], sum(shape[1] for shape in shapes[1:])


def _overwritten(site: Site, module: nn.Module) -> bool:
    """Whether another operation changes the later features in place, which reactivation still needs to learn."""
    return any(
        getattr(called(user, module), 'inplace', False)
        or (user.op == 'call_method' and str(user.target).endswith('_'))
        or user.target is operator.iadd
        for user in site.later.users
        if user is not site.node
    )


def _inside_out(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules with several convolutions and a forward pass of their own, inner ones first."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if type(module).forward not in (nn.Module.forward, nn.Sequential.forward)
        and convolutions_of(module) > 1
        and any(p.requires_grad for p in module.parameters())
    ]
    return sorted(found, key=lambda item: -(item[0].count('.') + bool(item[0])))


def _nothing_to_do(model: nn.Module, refused: dict[str, str]) -> str:
    shown = '; '.join(f'{name}: {reason}' for name, reason in list(refused.items())[:3])
    why = f'these cannot be traced: {shown}' if refused else 'it neither concatenates old features nor adds shortcuts'
    return (
        f'{type(model).__name__} reuses no features that could be reactivated ({why}); choose another model, or widen '
        f'include, exclude, kinds or min_channels.'
    )
