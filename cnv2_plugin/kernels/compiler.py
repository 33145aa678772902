"""Compiles a graph into a program for the native kernels.

Gathers, normalisations and activations take no instruction: they go into the convolution in front of them, or into what
reads them, and concatenations and sums into places (see :mod:`.placement`).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..graph import ops
from ..graph.ir import Graph, Node
from ..graph.rewrite_gathers import is_permutation
from .integers import rounded_weight
from .opcodes import ACTIVATIONS, CHANGES, MOST_SPATIAL_INPUTS
from .placement import Placement, View, require
from .program import Program


def compile_graph(graph: Graph) -> Program:
    """Return the program that computes a graph, marked for its ``cut`` where it pools a map to one pixel.

    Raises:
        UnsupportedError: the kernels do not compute something in it.
    """
    return _Compiler(graph).compile()


class _Compiler:
    """Goes through the nodes in order; ``views`` are the values that somebody still reads."""

    def __init__(self, graph: Graph) -> None:
        nodes = graph.ordered()
        self.graph = graph
        self.input = next(node for node in nodes if isinstance(node.op, ops.Input))
        self.program = Program(graph.channels(self.input.id), graph.channels(graph.output))
        self.placement = Placement(graph, self.program)
        self.views: dict[int, View] = {}
        self.splits: list[View] = []
        self.done: set[int] = {self.input.id}
        self.readers: dict[int, list[Node]] = {node.id: [] for node in nodes}
        for node in nodes:
            for source in node.inputs:
                self.readers[source].append(node)
        self.waiting = {name: len(readers) for name, readers in self.readers.items()}
        self.waiting[graph.output] += 1

    def compile(self) -> Program:
        for node in self.graph.ordered():
            if node.id not in self.done:
                self._visit(node)
        result = self._read(self.graph.output)
        self.program.store(result.map, result.channels.tolist(), result.affine, result.act)
        self.program.fuse_in_tiles()
        return self.program

    def _visit(self, node: Node) -> None:
        require(type(node.op) in EMIT)
        EMIT[type(node.op)](self, node, node.op)

    def _finish(self, nodes: list[Node], view: View) -> None:
        """Give the last of some nodes its value, which is held already, and let go of all that they have read.

        What only looks at the value in another way follows at once, so that the value itself is not held for long.
        """
        self.done.update(node.id for node in nodes)
        inside = {node.id for node in nodes[:-1]}
        self.views[nodes[-1].id] = view
        while self.splits:
            self.placement.release(self.splits.pop())
        for source in (s for node in nodes for s in node.inputs if s not in inside):
            self.waiting[source] -= 1
            if not self.waiting[source] and source in self.views:
                self.placement.release(self.views[source])
        for reader in self.readers[nodes[-1].id]:
            if isinstance(reader.op, VIEWS) and reader.id not in self.done:
                self._visit(reader)

    def _read(self, name: int) -> View:
        """A value; images are loaded where they are read first."""
        if name not in self.views:
            self.views[name] = self.placement.place(name, self.program.in_channels, ())
            self.program.load(self.views[name].map)
        return self.views[name]

    def _changes(self, view: View, *more: str) -> tuple[int, ...]:
        return (*self.program.changes[view.map], *(CHANGES[name] for name in more))

    def _only_reader(self, node: Node) -> Optional[Node]:
        readers = self.readers[node.id]
        return readers[0] if self.waiting[node.id] == len(readers) == 1 else None

    def _look(self, node: Node, op: Any) -> None:
        """Another look at a value: selected channels, normalised or activated when somebody reads them."""
        view = self._read(node.inputs[0])
        if isinstance(op, ops.Gather):
            view = view.gather(op.index)
        else:
            require(view.act == 'Identity')
            if isinstance(op, ops.Affine):
                require(view.affine is None)
                view = replace(view, affine=(op.scale, op.shift))
            else:
                view = replace(view, act=_activation(op.module))
        self.placement.hold(view)
        self._finish([node], view)

    def _convolve(self, node: Node, op: ops.Conv) -> None:
        """A convolution with the permutations, normalisation and activation that follow it alone."""
        nodes, weight, bias, act = [node], op.weight, op.bias, 'Identity'
        row_to_channel = torch.arange(op.out_channels)
        while (reader := self._only_reader(nodes[-1])) is not None:
            if isinstance(reader.op, ops.Gather) and is_permutation(reader.op.index, op.out_channels):
                row_to_channel = reader.op.index.argsort()[row_to_channel]
            elif isinstance(reader.op, ops.Affine) and act == 'Identity':
                scale, shift = reader.op.scale[row_to_channel], reader.op.shift[row_to_channel]
                weight = weight * scale.view(-1, 1, 1, 1)
                bias = shift if bias is None else bias * scale + shift
            elif isinstance(reader.op, ops.Pointwise) and act == 'Identity':
                act = _activation(reader.op.module)
            else:
                break
            nodes.append(reader)
        conv = replace(op, weight=weight, bias=bias)
        if reader is not None and isinstance(reader.op, ops.ScatterSum):
            require(act == 'Identity' and bias is None and conv.is_pointwise)
            return self._scatter([*nodes, reader], reader.op, conv, row_to_channel)
        src, stride = self._source(conv, node.inputs[0])
        dst = self.placement.place(nodes[-1].id, op.out_channels, self._changes(src))
        require(src.map != dst.map or conv.is_pointwise)
        rows = dst.channels[row_to_channel].view(op.groups, -1)
        grouped, index = conv.grouped(), src.channels.view(op.groups, -1)
        biases = None if bias is None else bias.view(op.groups, -1)
        if not conv.is_pointwise:
            self.program.spatial(
                src.map, dst.map, grouped, index, rows, biases, stride, act, limits=conv.limits or None
            )
        elif self._is_linear(conv, src, dst, row_to_channel):
            self.program.linear(src.map, dst.map, weight.flatten(1), bias, act, in_bytes=conv.limits is not None)
        else:
            affine = src.grouped_affine(op.groups)
            if conv.limits == ():
                grouped = rounded_weight(grouped.flatten(0, 1), alone=True).view_as(grouped)
            self.program.select(
                src.map, dst.map, grouped.flatten(2), index, rows, biases, affine, src.act, act,
                limits=conv.limits or None,
            )  # fmt: skip
        self._finish(nodes, replace(dst, non_negative=act in ('ReLU', 'ReLU6')))

    def _is_linear(self, conv: ops.Conv, src: View, dst: View, row_to_channel: Tensor) -> bool:
        first_rows = torch.equal(dst.channels[row_to_channel], torch.arange(conv.out_channels))
        first_inputs = torch.equal(src.channels, torch.arange(conv.in_channels))
        one_pixel = self._changes(src)[-1:] == (CHANGES['ToOnePixel'],)
        return one_pixel and conv.groups == 1 and first_rows and first_inputs and src.is_plain

    def _source(self, conv: ops.Conv, name: int) -> tuple[View, int]:
        """What a convolution reads, in the shape that the kernels want, and its stride."""
        if conv.is_pointwise:
            return self._read(name), 1
        fits = conv.weight.shape[2:] == (3, 3) and conv.padding == conv.dilation == (1, 1)
        require(fits and conv.stride in ((1, 1), (2, 2)) and conv.weight.size(1) <= MOST_SPATIAL_INPUTS)
        src = self._split(name) if conv.stride == (2, 2) else self._read(name)
        require(src.is_plain and self.program.maps[src.map][1])
        return src, conv.stride[0]

    def _split(self, name: int) -> View:
        """A value in a map of four planes for each channel, which is kept until the node that reads it is finished."""
        if name not in self.views and len(self.readers[name]) == 1:
            channels = self.program.in_channels
            split = self.placement.temporary(4 * channels, (CHANGES['HalvedUp'],), padded=True)
            self.program.load(split.map, 'Splitted')
            self.splits.append(split)
            return replace(split, channels=torch.arange(channels))
        src = self._read(name)
        split = self.placement.temporary(4 * self.program.maps[src.map][0], self._changes(src, 'HalvedUp'), padded=True)
        self.program.split(src.map, split.map)
        self.splits.append(split)
        return replace(src, map=split.map)

    def _scatter(self, nodes: list[Node], scatter: ops.ScatterSum, conv: ops.Conv, row_to_channel: Tensor) -> None:
        """A convolution whose rows are added to channels: of a sum in place, else of zeros."""
        src = self._read(nodes[0].inputs[0])
        add = self._only_reader(nodes[-1])
        if add is not None and isinstance(add.op, ops.Add):
            (other,) = (name for name in add.inputs if name != nodes[-1].id)
            dst = self._read(other)
            require(self.waiting[other] == 1 and dst.is_plain and self.placement.is_held_once(dst))
            self.placement.hold(dst)
            nodes.append(add)
        else:
            dst = self.placement.place(nodes[-1].id, scatter.out_channels, self._changes(src))
            self.program.zero(dst.map)
        rows = dst.channels[scatter.index[row_to_channel]].view(conv.groups, -1)
        require(all(row.unique().numel() == row.numel() for row in rows))  # a group writes each of its channels once
        index = src.channels.view(conv.groups, -1)
        affine = src.grouped_affine(conv.groups)
        self.program.select(
            src.map, dst.map, conv.grouped().flatten(2), index, rows, None, affine, src.act, accumulate=True,
            limits=conv.limits or None,
        )  # fmt: skip
        self._finish(nodes, replace(dst, non_negative=False))

    def _concatenate(self, node: Node, op: ops.Concat) -> None:
        views = [self._read(name) for name in node.inputs]
        require(len({view.map for view in views}) == 1 and all(view.is_plain for view in views))
        view = View(views[0].map, torch.cat([view.channels for view in views]))
        self.placement.hold(view)
        self._finish([node], view)

    def _pool(self, node: Node, op: ops.AveragePool) -> None:
        require((op.size, op.stride) == (2, 2))
        name = node.inputs[0]
        if name not in self.views and len(self.readers[name]) == 1:
            dst = self.placement.place(node.id, self.program.in_channels, (CHANGES['HalvedDown'],))
            self.program.load(dst.map, 'Pooled')
        else:
            src = self._read(name)
            dst = self.placement.place(node.id, src.channels.numel(), self._changes(src, 'HalvedDown'))
            require(src.is_plain and torch.equal(src.channels, dst.channels) and self.placement.is_whole(src))
            self.program.pool(src.map, dst.map)
        self._finish([node], dst)

    def _excite(self, node: Node, op: ops.SqueezeExcitation) -> None:
        view = self._read(node.inputs[0])
        require(type(op.act) is nn.ReLU and type(op.gate) is nn.Sigmoid)
        first = int(view.channels[0])
        require(torch.equal(view.channels, torch.arange(first, first + len(view.channels))) and view.is_plain)
        require(self.waiting[node.inputs[0]] == 1 and self.placement.is_held_once(view))
        self.program.excite(view.map, first, op.squeeze, op.excite, op.in_bytes)
        self.placement.hold(view)
        self._finish([node], view)

    def _maximum(self, node: Node, op: ops.MaxPool) -> None:
        window = (op.size, op.stride, op.padding)
        src = self._read(node.inputs[0])
        require(window == (3, 2, 1) and src.non_negative and src.is_plain)
        split = self._split(node.inputs[0])
        dst = self.placement.place(node.id, src.channels.numel(), self._changes(split))
        require(torch.equal(src.channels, dst.channels) and self.placement.is_whole(dst))
        self.program.maximum(split.map, dst.map)
        self._finish([node], dst)

    def _average(self, node: Node, op: ops.GlobalAveragePool) -> None:
        name, is_first = node.inputs[0], node.inputs[0] == self.input.id
        src = self._read(name)
        require(self.placement.is_whole(src))
        if not src.is_plain:
            require(self.waiting[name] == 1 and self.placement.is_held_once(src))
            self.program.normalise(src.map, src.affine, src.act)
        if not is_first:
            self.program.mark()
        dst = self.placement.place(node.id, src.channels.numel(), self._changes(src, 'ToOnePixel'))
        require(self.placement.is_whole(dst))
        self.program.average(src.map, dst.map)
        self._finish([node], dst)


VIEWS = (ops.Gather, ops.Affine, ops.Pointwise)
EMIT: dict[type, Callable[[_Compiler, Node, Any], None]] = {
    **dict.fromkeys(VIEWS, _Compiler._look),
    ops.Conv: _Compiler._convolve,
    ops.Concat: _Compiler._concatenate,
    ops.AveragePool: _Compiler._pool,
    ops.MaxPool: _Compiler._maximum,
    ops.GlobalAveragePool: _Compiler._average,
    ops.SqueezeExcitation: _Compiler._excite,
}


def _activation(module: nn.Module) -> str:
    name = type(module).__name__
    require(name in ACTIVATIONS and type(module).__module__.startswith('torch.nn'))
    return name
