"""The plain description that rewrites work on: a graph of operations on maps ``(N, C, H, W)``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Optional, Union

from .ops import Concat, Input, Op

Kinds = Union[type, tuple[type, ...]]
Rewrite = Callable[..., Optional[int]]
"""Looks at a node of a graph and gives the name of a value that equals the node's, or None."""


@dataclass(frozen=True, eq=False)
class Node:
    """An operation on the values of earlier nodes.

    Attributes:
        id: name of its value.
        op: operation.
        inputs: names of the values it reads.
        layer: name of the layer whose implementation may be chosen here; '' for all other nodes.
    """

    id: int
    op: Any
    inputs: tuple[int, ...] = ()
    layer: str = ''


@dataclass
class Graph:
    """Nodes by name, one input and one output."""

    nodes: dict[int, Node] = field(default_factory=dict)
    output: int = 0
    _next: int = 0

    @classmethod
    def of(cls, channels: int) -> 'Graph':
        """A graph that returns its input of so many channels."""
        graph = cls()
        graph.output = graph.add(Input(channels))
        return graph

    def add(self, op: Op, *inputs: int, layer: str = '') -> int:
        """Append an operation; returns the name of its value."""
        name = self._next
        self._next += 1
        self.nodes[name] = Node(name, op, inputs, layer)
        return name

    def __getitem__(self, name: int) -> Node:
        return self.nodes[name]

    def source(self, node: Node, position: int = 0) -> Node:
        """The node that an input of a node comes from."""
        return self.nodes[node.inputs[position]]

    def above(self, node: Node, kinds: Kinds) -> tuple[Node, list[Node]]:
        """The first node above that is none of some kinds of operations, and those of the kinds on the way up."""
        chain, above = [], self.source(node)
        while isinstance(above.op, kinds):
            chain.append(above)
            above = self.source(above)
        return above, chain

    def consumers(self, name: int) -> list[Node]:
        """The nodes that read a value."""
        return [node for node in self.nodes.values() if name in node.inputs]

    def is_only_read_by(self, name: int, reader: Node) -> bool:
        """Whether a value serves nothing but one node."""
        return name != self.output and all(node.id == reader.id for node in self.consumers(name))

    def channels(self, name: int) -> int:
        """Number of channels of a value."""
        op, inputs = self[name].op, self[name].inputs
        if isinstance(op, Concat):
            return sum(self.channels(i) for i in inputs)
        return op.out_channels if hasattr(op, 'out_channels') else self.channels(inputs[0])

    def parameters(self) -> int:
        """Number of constants of convolutions and normalisations, zeros filled in included."""
        names = ('weight', 'bias', 'scale', 'shift')
        constants = (getattr(node.op, name, None) for node in self.nodes.values() for name in names)
        return sum(constant.numel() for constant in constants if constant is not None)

    def sizes(self, height: int, width: int) -> dict[int, tuple[int, int]]:
        """Height and width of every value, for an input of that size."""
        sizes: dict[int, tuple[int, int]] = {}
        for node in self.ordered():
            sizes[node.id] = node.op.output_size(sizes[node.inputs[0]] if node.inputs else (height, width))
        return sizes

    def replace(self, old: int, new: int) -> None:
        """Let everything that read ``old`` read ``new``, and drop what nothing reads any more."""
        layer = self.nodes[old].layer
        if layer and not self.nodes[new].layer:
            self.nodes[new] = replace(self.nodes[new], layer=layer)
        for node in self.consumers(old):
            self.nodes[node.id] = replace(node, inputs=tuple(new if i == old else i for i in node.inputs))
        if self.output == old:
            self.output = new
        self.nodes = {node.id: node for node in self.ordered()}

    def ordered(self) -> Sequence[Node]:
        """The input and the nodes that the output needs, each after those it reads."""
        done: dict[int, Node] = {i: n for i, n in self.nodes.items() if isinstance(n.op, Input)}
        stack = [self.output]
        while stack:
            node = self.nodes[stack[-1]]
            waiting = [i for i in node.inputs if i not in done]
            if not waiting:
                done[stack.pop()] = node
            else:
                stack.extend(reversed(waiting))
        return list(done.values())

    def layers(self) -> Iterator[Node]:
        """Yield the nodes whose implementation may be chosen."""
        return (node for node in self.nodes.values() if node.layer)

    def copy(self) -> 'Graph':
        """A graph that can be rewritten by itself; operations are shared, they never change."""
        return Graph(dict(self.nodes), self.output, self._next)


def rewrites(kind: Kinds, behind: Optional[Kinds] = None) -> Callable[[Rewrite], Rewrite]:
    """Show a rewrite only nodes of a kind, with their operation, and the node in front where its kind is asked for."""

    def register(rewrite: Rewrite) -> Rewrite:
        @wraps(rewrite)
        def checked(graph: Graph, node: Node, **options: int) -> Optional[int]:
            if not isinstance(node.op, kind):
                return None
            if behind is None:
                return rewrite(graph, node, node.op, **options)
            source = graph.source(node)
            return rewrite(graph, node, node.op, source, **options) if isinstance(source.op, behind) else None

        return checked

    return register
