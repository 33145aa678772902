"""Every rewrite by itself: it fits where it should, and computes the same in float64."""

import inspect
from functools import partial

import pytest
import torch
from torch import nn

from cnv2_plugin.graph import rewrite_convs, rewrite_gathers
from cnv2_plugin.graph.implementations import apply, clean_up
from cnv2_plugin.graph.ir import Graph
from cnv2_plugin.graph.module import FoldedAvgPool2d, LoweredGraph
from cnv2_plugin.graph.ops import Add, Affine, AveragePool, Concat, Conv, Gather, Pointwise, ScatterSum
from cnv2_plugin.graph.rewrite_convs import (
    depthwise_sum,
    fold_affine,
    merge_groups,
    pad_groups,
    split_columns,
    split_concat,
    use_plain_layout,
)
from cnv2_plugin.graph.rewrite_gathers import (
    absorb_into_conv,
    absorb_permutation,
    gather_by_conv,
    gather_once,
    halve_permutation,
    join_gathers,
    permute_rows,
    push_pool,
    raise_gather,
    scatter_dense,
    scatter_levels,
    scatter_split,
    sink_permutation,
    swap_gather,
)

REWRITES = [
    function
    for module in (rewrite_convs, rewrite_gathers)
    for function in vars(module).values()
    if inspect.isfunction(function)
    and list(inspect.signature(function).parameters)[:2] == ['graph', 'node']
    and not function.__name__.startswith('_')
]


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def affine(channels):
    scale = random(channels)
    scale[0], scale[-1] = 0, 1e-30
    return Affine(scale, random(channels))


def conv(outputs, inputs, kernel=1, groups=1, bias=False, stride=1):
    return Conv(
        random(outputs, inputs // groups, kernel, kernel),
        random(outputs) if bias else None,
        (stride, stride),
        (kernel // 2, kernel // 2),
        groups=groups,
    )


def chain(channels, *ops):
    """A graph of one operation after the other."""
    graph = Graph.of(channels)
    for op in ops:
        graph.output = graph.add(op, graph.output, layer='it' if isinstance(op, (Conv, ScatterSum)) else '')
    return graph


def run(graph, size=(6, 5)):
    x = torch.randn(2, graph.channels(0), *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return LoweredGraph(graph, torch.float64)(x)


def check(graph, rewrite, expect=None, size=(6, 5)):
    """Rewrite the output node; the result must be equal and contain an operation of the expected kind."""
    before = run(graph, size)
    assert apply(graph, rewrite, graph[graph.output])
    after = run(graph, size)
    assert after.shape == before.shape
    assert (after - before).abs().max() <= 1e-12 * before.abs().max()
    if expect is not None:
        assert expect(graph)
    return graph


def count(graph, kind):
    return sum(isinstance(node.op, kind) for node in graph.nodes.values())


def output_conv(graph):
    node = graph[graph.output]
    assert isinstance(node.op, Conv)
    return node.op


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('groups', [1, 3])
def test_fold_affine(bias, groups):
    graph = chain(6, conv(9, 6, 3, groups, bias), affine(9))
    check(graph, fold_affine, lambda g: count(g, Affine) == 0 and output_conv(g).groups == groups)


def test_fold_affine_keeps_a_convolution_that_others_read():
    graph = Graph.of(4)
    shared = graph.add(conv(4, 4), 0)
    graph.output = graph.add(Add(), graph.add(affine(4), shared), shared)
    assert fold_affine(graph, graph[graph[graph.output].inputs[0]]) is None


def test_join_gathers():
    graph = chain(5, Gather(torch.tensor([4, 0, 0, 2])), Gather(torch.tensor([3, 1, 1])))
    graph = check(graph, join_gathers, lambda g: count(g, Gather) == 1)
    assert graph[graph.output].op.index.tolist() == [2, 0, 0]


def test_gather_of_everything_vanishes():
    graph = chain(5, Pointwise(nn.ReLU()), Gather(torch.arange(5)))
    check(graph, join_gathers, lambda g: count(g, Gather) == 0)
    part = chain(5, Pointwise(nn.ReLU()), Gather(torch.arange(4)))
    assert join_gathers(part, part[part.output]) is None


@pytest.mark.parametrize('op', [Pointwise(nn.Hardswish()), 'affine'])
def test_swap_and_raise_gather(op):
    index = torch.tensor([4, 0, 2, 2, 0])
    scale, shift = random(5), random(5)
    if op == 'affine':
        op = Affine(scale[index], shift[index])
    graph = chain(5, Gather(index), op)
    graph = check(graph, swap_gather, lambda g: isinstance(g[g.output].op, Gather))
    check(graph, raise_gather, lambda g: not isinstance(g[g.output].op, Gather))


def test_swap_gather_refuses_copies_normalised_differently():
    graph = chain(5, Gather(torch.tensor([1, 1])), affine(2))
    assert swap_gather(graph, graph[graph.output]) is None


def test_sink_permutation_only_moves_permutations():
    graph = chain(4, Gather(torch.tensor([2, 0, 3, 1])), affine(4))
    check(graph, sink_permutation, lambda g: isinstance(g[g.output].op, Gather))
    selection = chain(4, Gather(torch.tensor([2, 0])), affine(2))
    assert sink_permutation(selection, selection[selection.output]) is None


@pytest.mark.parametrize('kernel', [1, 3])
def test_absorb_into_conv(kernel):
    graph = chain(7, Gather(torch.tensor([6, 0, 0, 3, 2, 6])), conv(4, 6, kernel, groups=2, bias=True))
    check(graph, absorb_into_conv, lambda g: count(g, Gather) == 0 and output_conv(g).groups == 1)


def test_absorb_permutation_leaves_group_convolutions():
    order = torch.tensor([3, 1, 0, 2])
    check(chain(4, Gather(order), conv(3, 4, 3)), absorb_permutation, lambda g: count(g, Gather) == 0)
    grouped = chain(4, Gather(order), conv(4, 4, 3, groups=2))
    assert absorb_permutation(grouped, grouped[grouped.output]) is None


@pytest.mark.parametrize('activated', [False, True])
def test_permute_rows(activated):
    ops = [conv(5, 4, bias=True), *([Pointwise(nn.ReLU())] if activated else []), Gather(torch.tensor([4, 0, 0, 1]))]
    check(chain(4, *ops), permute_rows, lambda g: count(g, Gather) == 0)


def test_gather_once():
    scale, shift, index = random(6), random(6), torch.tensor([5, 0, 0, 5, 0, 5, 2, 2])
    ops = (Gather(index), Affine(scale[index], shift[index]), Pointwise(nn.Hardswish()))
    graph = check(chain(6, *ops), gather_once, lambda g: count(g, Gather) == 2)
    assert min(g.op.index.numel() for g in graph.nodes.values() if isinstance(g.op, Gather)) == 3
    few = chain(6, Gather(torch.tensor([0, 1, 2, 3, 3])), Pointwise(nn.ReLU()))
    assert gather_once(few, few[few.output]) is None


def test_gather_by_conv():
    graph = chain(6, Gather(torch.tensor([5, 0, 0, 2])), Pointwise(nn.ReLU()), Gather(torch.tensor([1, 2, 3])))
    for node in [n for n in graph.nodes.values() if isinstance(n.op, Gather)]:
        assert (gather_by_conv(graph.copy(), node) is None) == (node.id == graph.output)
    check(chain(6, Gather(torch.tensor([5, 0, 0, 2]))), gather_by_conv, lambda g: count(g, Gather) == 0)


def test_halve_permutation():
    order = Gather(torch.tensor([5, 0, 4, 2, 1, 3]))
    check(chain(6, order), halve_permutation, lambda g: count(g, Concat) == 1 and count(g, Gather) == 2)
    kept = chain(6, order, conv(4, 6, groups=2))
    assert all(halve_permutation(kept, node) is None for node in list(kept.nodes.values()))


@pytest.mark.parametrize('merged', [2, 3, 6])
def test_merge_groups(merged):
    graph = chain(12, conv(18, 12, 3, groups=6, bias=True, stride=2))
    check(graph, partial(merge_groups, count=merged), lambda g: output_conv(g).groups == 6 // merged)


def test_pad_groups():
    graph = chain(9, Gather(torch.tensor([0, 8, 3, 3, 1, 2])), conv(4, 6, groups=2))
    check(graph, pad_groups, lambda g: output_conv(g).weight.size(1) == 8)


@pytest.mark.parametrize(('outputs', 'inputs', 'groups', 'stride'), [(4, 12, 4, 1), (6, 12, 3, 2), (8, 8, 2, 1)])
@pytest.mark.parametrize('shuffled', [False, True])
def test_depthwise_sum(outputs, inputs, groups, stride, shuffled):
    ops = [Gather(torch.randperm(inputs))] if shuffled else []
    graph = chain(inputs, *ops, conv(outputs, inputs, 3, groups, bias=True, stride=stride))
    graph = check(graph, depthwise_sum, lambda g: count(g, Gather) == 0)
    assert count(graph, Conv) == 2 * outputs // groups


@pytest.mark.parametrize(('outputs', 'inputs', 'groups'), [(16, 6, 2), (12, 9, 3), (8, 8, 2), (24, 12, 6), (6, 6, 2)])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('kernel', [3, 5])
def test_split_columns(outputs, inputs, groups, stride, kernel):
    graph = chain(inputs, conv(outputs, inputs, kernel, groups, bias=True, stride=stride))
    graph = check(graph, split_columns, lambda g: count(g, Conv) == 3, size=(7, 9))
    sums = output_conv(graph)
    assert sums.in_channels % 8 == 0
    assert sums.out_channels // sums.groups % 8 == 0 or outputs in (12, 6)


SCATTERS = {
    'some several, some none': (8, [0, 5, 1, 0, 3, 5, 7, 5]),
    'all once': (8, [7, 5, 3, 1, 0, 2, 4, 6]),
    'all several': (2, [0, 1, 1, 0, 0, 1, 0, 1]),
    'once or never, alike in all groups': (9, [0, 1, 2, 3, 4, 5, 6, 7]),
    'once or never, unlike': (9, [0, 0, 2, 3, 4, 5, 6, 7]),
    'one channel': (5, [3, 3, 3, 3, 3, 3, 3, 3]),
}


@pytest.mark.parametrize('case', SCATTERS)
@pytest.mark.parametrize('rewrite', [scatter_dense, scatter_levels, scatter_split])
@pytest.mark.parametrize('groups', [2, 4])
def test_scatter(case, rewrite, groups):
    channels, index = SCATTERS[case]
    order = Gather(torch.randperm(4))
    graph = chain(4, order, conv(8, 4, groups=groups), ScatterSum(torch.tensor(index), channels))
    graph = check(graph, rewrite, lambda g: count(g, ScatterSum) == 0)
    clean_up(graph)
    assert graph[graph.output].layer == 'it'


def test_plain_layout_needs_a_pointwise_convolution():
    graph = check(chain(4, conv(6, 4, groups=2, bias=True)), use_plain_layout, lambda g: output_conv(g).plain)
    assert use_plain_layout(graph, graph[graph.output]) is None
    spatial = chain(4, conv(4, 4, 3))
    assert use_plain_layout(spatial, spatial[spatial.output]) is None


@pytest.mark.parametrize('seed', range(10))
def test_cleaning_up_random_graphs(seed):
    torch.manual_seed(seed)
    graph = Graph.of(6)
    values = [0]
    for _ in range(14):
        x = values[torch.randint(len(values), ()).item()]
        c = graph.channels(x)
        kind = torch.randint(7, ()).item()
        ops = [conv(c, c), affine(c), Pointwise(nn.ReLU()), Gather(torch.randperm(c)), Gather(torch.randint(c, (6,)))]
        if kind < 5:
            values.append(graph.add(ops[kind], x))
        else:
            same = [v for v in values if graph.channels(v) == c]
            values.append(graph.add(Add() if kind == 5 else Concat(), x, same[-1]))
    graph.output = values[-1]
    before = run(graph)
    clean_up(graph)
    assert (run(graph) - before).abs().max() <= 1e-11 * before.abs().max()


def test_rewrites_of_another_node_do_not_fit():
    graph = chain(4, Pointwise(nn.ReLU()))
    for rewrite in REWRITES:
        options = dict(count=2) if rewrite is merge_groups else {}
        assert rewrite(graph, graph[graph.output], **options) is None


@pytest.mark.parametrize('bias', [False, True])
def test_split_concat(bias):
    graph = Graph.of(5)
    maps = [graph.add(conv(n, 5), 0) for n in (3, 4, 1)]
    value = graph.add(Pointwise(nn.Hardswish()), graph.add(affine(8), graph.add(Concat(), *maps)))
    graph.output = graph.add(conv(6, 8, bias=bias), value, layer='it')
    check(
        graph,
        split_concat,
        lambda g: count(g, Concat) == 0 and count(g, Conv) == 6 and count(g, Add) == 2,
    )


@pytest.mark.parametrize('ops', [(affine(8), conv(8, 8, 3)), (conv(6, 8),), (affine(8), conv(4, 8, groups=2))])
def test_split_concat_leaves_what_it_does_not_fit(ops):
    graph = chain(8, *ops)
    assert split_concat(graph, graph[graph.output]) is None


@pytest.mark.parametrize(
    ('channels', 'size', 'bands'),
    [(6, (32, 10), 8), (6, (12, 10), 1), (12, (8, 6), 4), (24, (8, 6), 1), (5, (7, 7), 1)],
)
def test_pools_fold_rows_into_channels(channels, size, bands):
    pool = AveragePool(2, 2)
    assert pool.folding(channels, size[0]) == bands
    x = torch.randn(3, channels, *size, dtype=torch.float64)
    assert torch.allclose(FoldedAvgPool2d(pool)(x), nn.functional.avg_pool2d(x, 2), atol=1e-15, rtol=0)
    assert AveragePool(3, 2).folding(channels, size[0]) == 1


def test_graphs_for_any_height_do_not_fold():
    pool = FoldedAvgPool2d(AveragePool(2, 2))
    x, y = torch.randn(1, 6, 32, 8), torch.randn(1, 6, 28, 8)
    assert torch.equal(torch.jit.trace(pool, x)(y), pool(y))
    dynamic = {2: 2 * torch.export.Dim('half', min=2, max=64)}
    assert torch.equal(torch.export.export(pool, (x,), dynamic_shapes=(dynamic,)).module()(y), pool(y))


@pytest.mark.parametrize(
    'op', [conv(3, 6), Gather(torch.arange(5, -1, -1)), ScatterSum(torch.tensor([0, 0, 3, 1, 2, 2]), 4)]
)
def test_pools_move_before_what_is_linear(op):
    graph = chain(6, affine(6), op, AveragePool(2, 2))
    check(graph, push_pool, lambda g: isinstance(g[g.output].op, type(op)))


def test_pools_move_before_sums_and_concatenations():
    graph = Graph.of(6)
    left, right = (graph.add(affine(6), 0) for _ in range(2))
    graph.output = graph.add(AveragePool(2, 2), graph.add(Concat(), graph.add(Add(), left, right), right))
    check(graph, push_pool, lambda g: isinstance(g[g.output].op, Concat) and count(g, AveragePool) == 2)


@pytest.mark.parametrize('op', [Gather(torch.tensor([0, 3])), affine(6), conv(3, 6, 3)])
def test_pools_stay_behind_what_is_cheaper_first(op):
    graph = chain(6, op, AveragePool(2, 2))
    assert push_pool(graph, graph[graph.output]) is None
