"""Where the values of a graph live while a program runs: channels of maps, and slots of memory for the maps."""

from dataclasses import dataclass, replace
from typing import Optional

import torch
from torch import Tensor

from ..graph.ir import Graph, Node
from ..graph.ops import Add, Affine, Concat, Conv, Gather, Pointwise, ScatterSum, SqueezeExcitation
from .program import Affine as ScaleShift
from .program import Program

FEATURE_SLOTS, PADDED_SLOTS, OTHER_SLOTS = (0, 1), (2, 3), (3, 2)
"""Slots that maps are put into first: of features that grow or are updated in place, and of values within a layer."""


class UnsupportedError(Exception):
    """The kernels do not compute something in a graph; it stays in standard operators."""


def require(supported: object) -> None:
    """Raise UnsupportedError unless the kernels compute what was asked about."""
    if not supported:
        raise UnsupportedError


@dataclass(frozen=True)
class View:
    """A value: ``channels`` of a map, and a normalisation and activation for whoever reads them.

    ``non_negative`` says that the map is known to hold no negative values there.
    """

    map: int
    channels: Tensor
    affine: Optional[ScaleShift] = None
    act: str = 'Identity'
    non_negative: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the value is just what the map holds."""
        return self.affine is None and self.act == 'Identity'

    def grouped_affine(self, groups: int) -> Optional[ScaleShift]:
        """Scale and shift as ``(groups, C / groups)``."""
        return self.affine and (self.affine[0].view(groups, -1), self.affine[1].view(groups, -1))

    def gather(self, index: Tensor) -> 'View':
        """Some of the channels in another order."""
        affine = self.affine and (self.affine[0][index], self.affine[1][index])
        return replace(self, channels=self.channels[index], affine=affine)


class _Storage:
    """Who holds the channels of a map, and which are free, those that were freed last at the end."""

    def __init__(self, channels: int) -> None:
        self.holders, self.free = torch.zeros(channels, dtype=torch.int64), list(range(channels))


class Placement:
    """Gives values of a graph places in a program's maps: what is concatenated or added to shares one, uncopied."""

    def __init__(self, graph: Graph, program: Program) -> None:
        self.program = program
        self._storage: list[_Storage] = []
        self._feature_maps: dict[int, int] = {}
        self._family = {name: name for name in graph.nodes}
        self._width: dict[int, int] = {}
        self._padded: set[int] = set()
        for node in graph.ordered():
            for source in _shares_map_with(node, graph):
                self._family[self._root(source)] = self._root(node.id)
        for node in graph.ordered():
            if isinstance(node.op, (Concat, Add)):
                root = self._root(node.id)
                self._width[root] = max(self._width.get(root, 0), graph.channels(node.id))
            elif isinstance(node.op, Conv) and node.op.weight.size(2) > 1 and node.op.stride == (1, 1):
                self._padded.add(self._root(node.inputs[0]))

    def _root(self, name: int) -> int:
        while self._family[name] != name:
            name = self._family[name]
        return name

    def place(self, name: int, channels: int, changes: tuple[int, ...]) -> View:
        """Free channels for a value of a size, which are held from now on; unsupported where its map has no room."""
        root = self._root(name)
        if root not in self._width:
            return self.temporary(channels, changes, root in self._padded)
        if root not in self._feature_maps:
            self._feature_maps[root] = self._add_map(self._width[root], FEATURE_SLOTS, root in self._padded)
        map_ = self._feature_maps[root]
        require(self.program.changes.get(map_, changes) == changes)
        return self._take(map_, channels)

    def temporary(self, channels: int, changes: tuple[int, ...], padded: bool) -> View:
        """Channels of a map that no value needs any more, or of a new one; they are held from now on."""
        slots = PADDED_SLOTS if padded else OTHER_SLOTS
        features = self._feature_maps.values()
        for map_, (width, is_padded, slot) in enumerate(self.program.maps):
            fits = width >= channels and is_padded == padded and self.program.changes.get(map_) == changes
            if fits and map_ not in features and self._is_free(slot):
                self._storage[map_] = _Storage(width)
                return self._take(map_, channels)
        return self._take(self._add_map(channels, slots, padded), channels)

    def hold(self, view: View) -> None:
        """Keep the channels of a view."""
        self._storage[view.map].holders.index_add_(0, view.channels, torch.ones_like(view.channels))

    def release(self, view: View) -> None:
        """Let the channels of a view go; those that no view holds are free then."""
        storage = self._storage[view.map]
        storage.holders.index_add_(0, view.channels, -torch.ones_like(view.channels))
        free = view.channels[storage.holders[view.channels] == 0]
        storage.free += dict.fromkeys(free.tolist())

    def is_held_once(self, view: View) -> bool:
        """Whether no other view sees what is written into the channels of a view."""
        return bool((self._storage[view.map].holders[view.channels] == 1).all())

    def is_whole(self, view: View) -> bool:
        """Whether a view is all channels of its map in order."""
        return view.channels.tolist() == list(range(self.program.maps[view.map][0]))

    def _take(self, map_: int, channels: int) -> View:
        storage = self._storage[map_]
        require(len(storage.free) >= channels)
        taken, storage.free = storage.free[:channels], storage.free[channels:]
        view = View(map_, torch.tensor(taken, dtype=torch.int64))
        self.hold(view)
        return view

    def _add_map(self, channels: int, slots: tuple[int, ...], padded: bool) -> int:
        slot = next((s for s in (*slots, *range(4, 60)) if self._is_free(s)), -1)
        require(slot >= 0)
        self._storage.append(_Storage(channels))
        return self.program.add_map(channels, slot, padded)

    def _is_free(self, slot: int) -> bool:
        return not any(s.holders.any() for s, (_, _, other) in zip(self._storage, self.program.maps) if other == slot)


def _shares_map_with(node: Node, graph: Graph) -> tuple[int, ...]:
    """The inputs of a node whose map its value lies in."""
    if isinstance(node.op, (Concat, Gather, Affine, Pointwise, SqueezeExcitation)):
        return node.inputs
    if isinstance(node.op, Add):
        return node.inputs[1:] if isinstance(graph.source(node).op, ScatterSum) else node.inputs[:1]
    return ()
