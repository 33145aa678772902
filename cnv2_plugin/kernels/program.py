"""Programs that the kernels run: instructions as int32 words, weights as one array of floats.

The words of every instruction stand at the head of ``csrc/program.cpp``.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from .integers import in_words, quantise_rows, row_of_words, step_and_zero
from .opcodes import ACTIVATIONS, BLOCK, CHANGES, FLAGS, LOADING, MAGIC, MOST_LONE_WEIGHT, OPERATIONS

Affine = tuple[Tensor, Tensor]

_FOLLOWERS, _STRIDE = 13, 7  # places of words in select and spatial


class _Offset(int):
    """A word that says where an array of weights begins."""


class _Map(int):
    """A word that names a map."""


class _Cut(NamedTuple):
    maps: int
    instructions: int
    arrays: int
    floats: int


class Program:
    """A list of instructions under construction; weights are float64 until :meth:`weights` rounds them once.

    Attributes:
        maps: channels, padding and slot of every map.
        instructions: words of every instruction.
        changes: how height and width of every map that was written differ from those of the images.
        floats: number of weights so far.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        self.in_channels, self.out_channels = in_channels, out_channels
        self.maps: list[tuple[int, int, int]] = []
        self.instructions: list[list[int]] = []
        self.changes: dict[int, tuple[int, ...]] = {}
        self._arrays: list[Tensor] = [torch.zeros(1)]
        self.floats = 1
        self._last: Optional[int] = None

    @property
    def shape(self) -> list[int]:
        """Channels of the result and the changes of height and width, as the operator takes them."""
        return [self.out_channels, *self.changes[self.instructions[-1][2]]]

    def add_map(self, channels: int, slot: int, padded: bool = False) -> int:
        """A map of so many channels; maps of one slot share memory, so writing one forgets the others."""
        self.maps.append((channels, int(padded), slot))
        return _Map(len(self.maps) - 1)

    def load(self, dst: int, how: str = 'Plain') -> None:
        """Read the images into a map: as they are, ``'Pooled'`` by the mean of 2x2 pixels, or ``'Splitted'``."""
        change = dict(Plain=None, Pooled='HalvedDown', Splitted='HalvedUp')[how]
        self._add('Load', self._written(dst, None, change), LOADING[how])

    def split(self, src: int, dst: int) -> None:
        """Every channel as four of half the size: even and odd columns of even rows, then those of odd rows."""
        self._add('Split', src, self._written(dst, src, 'HalvedUp'))

    def maximum(self, src: int, dst: int) -> None:
        """The largest of 3x3 positions, 2 apart with padding 1, of a split map without negative values."""
        self._add('Maximum', src, self._written(dst, src))

    def pool(self, src: int, dst: int) -> None:
        """The mean of 2x2 pixels."""
        self._add('Pool', src, self._written(dst, src, 'HalvedDown'))

    def average(self, src: int, dst: int) -> None:
        """The mean of all pixels."""
        self._add('Average', src, self._written(dst, src, 'ToOnePixel'))

    def zero(self, dst: int) -> None:
        """A map of zeros, as large as the map written last."""
        self._add('Zero', self._written(dst, self._last))

    def select(
        self,
        src: int,
        dst: int,
        weight: Tensor,
        index: Tensor,
        target: Tensor,
        bias: Optional[Tensor] = None,
        affine: Optional[Affine] = None,
        act_in: str = 'Identity',
        act_out: str = 'Identity',
        accumulate: bool = False,
        limits: Optional[tuple[float, ...]] = None,
    ) -> None:
        """A 1x1 group convolution from selected channels to selected channels.

        ``weight`` is ``(groups, rows, inputs)``; ``index``, the channels read, and ``affine``, scale and shift of them,
        are ``(groups, inputs)``; ``target``, the channels written or added to, and ``bias`` are ``(groups, rows)``.
        With ``limits`` of what is read, behind its activation, it is computed in bytes.
        """
        groups, rows, inputs = weight.shape
        kept, bias, words = _rounded(weight.unsqueeze(3), bias, limits)
        flags = _flags(accumulate, bias, affine) + (FLAGS['Bytes'] if words else 0)
        self._add(
            'Select', src, self._written(dst, src), groups, inputs, rows, ACTIVATIONS[act_in], ACTIVATIONS[act_out],
            flags, self._keep(*kept), self._keep(bias), self._keep(*affine or ()), 0,
            *index.flatten().tolist(), *target.flatten().tolist(), *words,
        )  # fmt: skip

    def spatial(
        self,
        src: int,
        dst: int,
        weight: Tensor,
        index: Tensor,
        target: Tensor,
        bias: Optional[Tensor] = None,
        stride: int = 1,
        act_out: str = 'Identity',
        limits: Optional[tuple[float, ...]] = None,
    ) -> None:
        """A 3x3 group convolution with zero padding 1, arguments as for :meth:`select`.

        The map read is padded; at stride 2 it is a split one, whose channels count once.
        """
        groups, rows, inputs = weight.shape[:3]
        kept, bias, words = _rounded(weight.flatten(3), bias, limits)
        self._add(
            'Spatial', src, self._written(dst, src), groups, inputs, rows, stride, ACTIVATIONS[act_out],
            _flags(bias=bias) + (FLAGS['Bytes'] if words else 0), self._keep(*kept), self._keep(bias),
            *index.flatten().tolist(), *target.flatten().tolist(), *words,
        )  # fmt: skip

    def excite(self, map_: int, first: int, squeeze: Tensor, excite: Tensor, in_bytes: bool = False) -> None:
        """Squeeze-and-excitation in place; ``squeeze`` is ``(hidden, channels)``, ``excite`` ``(channels, hidden)``.

        Where ``in_bytes``, the weights are rounded to bytes, with a scale of every row.
        """
        hidden, channels = squeeze.shape
        kept, words = [squeeze.t(), excite.t()], []
        if in_bytes:
            rounded = [quantise_rows(weight, MOST_LONE_WEIGHT) for weight in (squeeze, excite)]
            kept, words = [scale for _, scale in rounded], [row_of_words(whole.t()) for whole, _ in rounded]
        operation = 'ExciteBytes' if in_bytes else 'Excite'
        self._add(operation, map_, first, channels, hidden, *map(self._keep, kept), *chain.from_iterable(words))

    def normalise(self, map_: int, affine: Optional[Affine] = None, act: str = 'Identity') -> None:
        """Normalise every channel of a map with its scale and shift, and activate it, in place."""
        self._add('Normalise', map_, ACTIVATIONS[act], _flags(affine=affine), self._keep(*affine or ()))

    def linear(
        self,
        src: int,
        dst: int,
        weight: Tensor,
        bias: Optional[Tensor] = None,
        act_out: str = 'Identity',
        in_bytes: bool = False,
    ) -> None:
        """A linear layer ``(rows, inputs)`` between maps of one pixel, its weights rounded to bytes or not."""
        rows, inputs = weight.shape
        kept, words = weight, []
        if in_bytes:
            whole, kept = quantise_rows(weight, MOST_LONE_WEIGHT)
            words = row_of_words(whole)
        self._add(
            'Linear', src, self._written(dst, src), inputs, rows, ACTIVATIONS[act_out],
            _flags(bias=bias) + (FLAGS['Bytes'] if in_bytes else 0), self._keep(kept), self._keep(bias), *words,
        )  # fmt: skip

    def store(self, src: int, index: Sequence[int], affine: Optional[Affine] = None, act: str = 'Identity') -> None:
        """Selected channels of a map, normalised and activated, as the result."""
        self._add('Store', src, ACTIVATIONS[act], _flags(affine=affine), self._keep(*affine or ()), *index)

    def fuse_in_tiles(self) -> None:
        """Run 1x1 convolutions tile by tile with the 3x3 convolution behind them that writes into the map they read.

        A 1x1 convolution within that map behind the two joins them.
        """
        for first, second, third in zip(self.instructions, self.instructions[1:], self.instructions[2:]):
            if (first[0], second[0]) == (OPERATIONS['Select'], OPERATIONS['Spatial']) and second[_STRIDE] == 1:
                features, hidden = first[2:4]
                if second[2:4] == [hidden, features] != [features, hidden]:
                    first[_FOLLOWERS] = 1 + (third[0] == OPERATIONS['Select'] and third[2:4] == [features, features])

    def mark(self) -> None:
        """Let :meth:`cut` cut here: what follows reads the map written last and maps that are added from here on."""
        self._cut = _Cut(len(self.maps), len(self.instructions), len(self._arrays), self.floats)
        self._keep(torch.zeros(1))

    def cut(self) -> tuple['Program', 'Program']:
        """What stands in front of the mark and behind it, as programs whose weights are slices of this one's.

        The first stores all channels of the map that the second loads, normalised as the last instruction there says.
        """
        at = self._cut
        src = self.instructions[at.instructions][2]
        channels = self.maps[src][0]
        front, back = Program(self.in_channels, channels), Program(channels, self.out_channels)
        front.maps, front.instructions = self.maps[: at.maps], self.instructions[: at.instructions]
        front.changes, front.floats, front._arrays = self.changes, at.floats, self._arrays[: at.arrays]
        operation, _, *last = front.instructions[-1]
        if (operation, last[0]) == (OPERATIONS['Normalise'], src):
            front.instructions.pop()
            front._add('Store', *last, *range(channels))
        else:
            front.store(src, range(channels))
        back.load(back.add_map(channels, 0))
        back.maps += self.maps[at.maps :]
        names = {src: 0, **{name: 1 + name - at.maps for name in range(at.maps, len(self.maps))}}
        depth = len(self.changes[src])
        back.changes = {new: self.changes[old][depth:] for old, new in names.items() if old in self.changes}
        back._arrays = self._arrays[at.arrays :]
        for operation, length, *words in self.instructions[at.instructions :]:
            moved = (
                names[word] if isinstance(word, _Map) else word - at.floats if isinstance(word, _Offset) else word
                for word in words
            )
            back.instructions.append([operation, length, *moved])
        return front, back

    def words(self) -> Tensor:
        """The program, int32 ``(words,)``."""
        head = [MAGIC, self.in_channels, self.out_channels, len(self.maps),
                1 + max(m[2] for m in self.maps), len(self.instructions)]  # fmt: skip
        flat = [word for part in (head, *self.maps, *self.instructions) for word in part]
        return torch.tensor(flat, dtype=torch.int32)

    def weights(self) -> Tensor:
        """The weights, float32 ``(floats,)``; the first float belongs to no instruction."""
        return torch.cat(self._arrays).float()

    def _written(self, dst: int, src: Optional[int], change: Optional[str] = None) -> int:
        """Note that a map is written from another one (None: the images); returns the map written."""
        before = () if src is None else self.changes.get(src, ())
        self.changes[dst] = before if change is None else (*before, CHANGES[change])
        self._last = dst
        return dst

    def _keep(self, *arrays: Optional[Tensor]) -> int:
        """Keep arrays one behind the other; returns where the first begins, -1 where there are none."""
        given = [array for array in arrays if array is not None]
        begin = _Offset(self.floats) if given else -1
        for array in given:
            self._arrays.append(array.detach().cpu().double().flatten())
            self.floats += array.numel()
        return begin

    def _add(self, operation: str, *words: int) -> None:
        self.instructions.append([OPERATIONS[operation], len(words), *words])


def _flags(accumulate: bool = False, bias: Optional[Tensor] = None, affine: Optional[Affine] = None) -> int:
    given = dict(Accumulate=accumulate, Bias=bias is not None, Affine=affine is not None)
    return sum(FLAGS[name] for name, wanted in given.items() if wanted)


def _rounded(
    weight: Tensor, bias: Optional[Tensor], limits: Optional[tuple[float, ...]]
) -> tuple[list[Tensor], Optional[Tensor], list[int]]:
    """Arrays, biases and words of weights ``(groups, rows, inputs, taps)``, in bytes where there are limits."""
    if limits is None:
        return _blocks(weight.permute(0, 2, 3, 1)), bias, []
    step, zero = step_and_zero(limits)
    whole, scale = quantise_rows(weight.flatten(2))
    lost = -zero * step * scale * whole.sum(2)
    bias = bias if not zero else lost if bias is None else bias + lost
    words = _blocks(in_words(whole.view_as(weight)))
    return (
        [torch.tensor([1 / step]), step * scale],
        bias,
        [zero, *torch.cat([block.flatten() for block in words]).tolist()],
    )


def _blocks(weight: Tensor) -> list[Tensor]:
    """Weights ``(groups, ..., rows)`` in the order in which tiles of rows read them."""
    return [block for group in weight for block in group.split(BLOCK, -1)]
