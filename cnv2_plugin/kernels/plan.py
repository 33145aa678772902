"""Writes the plans that the kernels run: instructions as int32 words, weights as one array of floats.

The words of every instruction stand at the head of ``csrc/plan.cpp``.
"""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

MAGIC = 0x434E5632
LOAD, POOL, ZERO, SELECT, SPATIAL, EXCITE, SPLIT, MAXIMUM, STORE, AVERAGE, LINEAR, NORMALISE = range(12)
PLAIN, POOLED, SPLITTED = range(3)
ACCUMULATE, BIAS, AFFINE = 1, 2, 4
ACTIVATIONS = ('Identity', 'ReLU', 'ReLU6', 'Hardswish')
"""Activations by the number that the kernels know them by: names of ``torch.nn`` classes."""
BLOCK = 4
"""Rows of a group whose weights lie side by side."""
MOST_SPATIAL_INPUTS = 256
"""Inputs of one group of a 3x3 convolution that the kernels take."""


def _blocks(weight: Tensor) -> list[Tensor]:
    """Weights ``(groups, ..., rows)`` in the order in which tiles of rows read them."""
    return [block for group in weight for block in group.split(BLOCK, -1)]


class Weights:
    """Arrays one behind the other, float64 until :meth:`rounded`; what is given twice is kept once."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._floats = 1
        self._given: dict[tuple[int, ...], tuple[int, Sequence[Tensor]]] = {}

    def add(self, *tensors: Tensor) -> int:
        """Keep arrays; returns where the first begins."""
        key = tuple(map(id, tensors))
        if key not in self._given:
            self._given[key] = self._floats, tensors
            for tensor in tensors:
                self._blocks.append(tensor.detach().cpu().double().flatten())
                self._floats += tensor.numel()
        return self._given[key][0]

    def __len__(self) -> int:
        return self._floats

    def rounded(self) -> Tensor:
        """All of them, float32 ``(floats,)``; the first float belongs to none."""
        return torch.cat([torch.zeros(1, dtype=torch.float64), *self._blocks]).float()


class Plan:
    """A list of instructions under construction; weights are float64 until :meth:`weights` rounds them once.

    Args:
        in_channels: channels of the images.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        self.in_channels, self.out_channels = in_channels, out_channels
        self.maps: list[tuple[int, int, int]] = []
        self.instructions: list[list[int]] = []
        self._weights = Weights()

    def continued(self, out_channels: int) -> 'Plan':
        """A plan that begins as this one, with the same maps and weights, and has another result."""
        made = Plan(self.in_channels, out_channels)
        made.maps, made.instructions, made._weights = [*self.maps], [*self.instructions], self._weights
        return made

    def begin_weights(self) -> int:
        """Have further weights laid as those of a plan that begins here; returns where that is."""
        begin = len(self._weights)
        self._weights.add(torch.zeros(1))
        return begin

    def add_map(self, channels: int, slot: int, padded: bool = False) -> int:
        """A map of so many channels; maps of one slot share memory, so writing one forgets the others."""
        self.maps.append((channels, int(padded), slot))
        return len(self.maps) - 1

    def load(self, dst: int, how: int = PLAIN) -> None:
        """Read the images into a map: as they are, by the mean of 2x2 pixels, or split (see :meth:`split`)."""
        self._add(LOAD, dst, how)

    def split(self, src: int, dst: int) -> None:
        """Every channel as four of half the size: even and odd columns of even rows, then those of odd rows."""
        self._add(SPLIT, src, dst)

    def maximum(self, src: int, dst: int) -> None:
        """The largest of 3x3 positions, 2 apart with padding 1, of a split map without negative values."""
        self._add(MAXIMUM, src, dst)

    def pool(self, src: int, dst: int) -> None:
        """The mean of 2x2 pixels."""
        self._add(POOL, src, dst)

    def zero(self, dst: int) -> None:
        """A map of zeros, as large as the map written last."""
        self._add(ZERO, dst)

    def select(
        self,
        src: int,
        dst: int,
        weight: Tensor,
        index: Tensor,
        target: Tensor,
        bias: Optional[Tensor] = None,
        affine: Optional[tuple[Tensor, Tensor]] = None,
        act_in: int = 0,
        act_out: int = 0,
        accumulate: bool = False,
    ) -> list[int]:
        """A 1x1 group convolution from selected channels to selected channels.

        Args:
            src: map read.
            dst: map written.
            weight: ``(groups, rows, inputs)``.
            index: channels that each group reads, ``(groups, inputs)``.
            target: channels that each group writes, ``(groups, rows)``.
            bias: ``(groups, rows)``.
            affine: scale and shift of every input, each ``(groups, inputs)``.
            act_in: activation of the inputs.
            act_out: activation of the results.
            accumulate: add to what is there.

        Returns:
            The instruction, for :meth:`in_bands`.
        """
        groups, rows, inputs = weight.shape
        flags = ACCUMULATE * accumulate + BIAS * (bias is not None) + AFFINE * (affine is not None)
        return self._add(
            SELECT, src, dst, groups, inputs, rows, act_in, act_out, flags,
            self._weights.add(*_blocks(weight.transpose(1, 2))), -1 if bias is None else self._weights.add(bias),
            -1 if affine is None else self._weights.add(*affine), 0,
            *index.flatten().tolist(), *target.flatten().tolist(),
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
        act_out: int = 0,
    ) -> None:
        """A 3x3 group convolution with zero padding 1.

        Args:
            src: map read, padded; at stride 2 a split one, whose channels count once.
            dst: map written.
            weight: ``(groups, rows, inputs, 3, 3)``.
            index: channels that each group reads, ``(groups, inputs)``.
            target: channels that each group writes, ``(groups, rows)``.
            bias: ``(groups, rows)``.
            stride: 1 or 2.
            act_out: activation of the results.
        """
        groups, rows, inputs = weight.shape[:3]
        self._add(
            SPATIAL, src, dst, groups, inputs, rows, stride, act_out, BIAS * (bias is not None),
            self._weights.add(*_blocks(weight.permute(0, 2, 3, 4, 1))), -1 if bias is None else self._weights.add(bias),
            *index.flatten().tolist(), *target.flatten().tolist(),
        )  # fmt: skip

    def excite(self, map_: int, first: int, squeeze: Tensor, excite: Tensor) -> None:
        """Squeeze-and-excitation in place.

        Args:
            map_: map.
            first: first of the excited channels.
            squeeze: ``(hidden, channels)``.
            excite: ``(channels, hidden)``.
        """
        self._add(EXCITE, map_, first, squeeze.size(1), squeeze.size(0), self._weights.add(squeeze.t()),
                  self._weights.add(excite.t()))  # fmt: skip

    def normalise(self, map_: int, affine: Optional[tuple[Tensor, Tensor]] = None, act: int = 0) -> None:
        """Normalise and activate in place.

        Args:
            map_: map.
            affine: scale and shift of every channel.
            act: activation behind it.
        """
        offset = -1 if affine is None else self._weights.add(*affine)
        self._add(NORMALISE, map_, act, AFFINE * (affine is not None), offset)

    def average(self, src: int, dst: int) -> None:
        """The mean of all pixels."""
        self._add(AVERAGE, src, dst)

    def linear(self, src: int, dst: int, weight: Tensor, bias: Optional[Tensor] = None, act_out: int = 0) -> None:
        """A linear layer between maps of one pixel.

        Args:
            src: map read.
            dst: map written.
            weight: ``(rows, inputs)``.
            bias: ``(rows,)``.
            act_out: activation of the results.
        """
        rows, inputs = weight.shape
        self._add(LINEAR, src, dst, inputs, rows, act_out, BIAS * (bias is not None), self._weights.add(weight),
                  -1 if bias is None else self._weights.add(bias))  # fmt: skip

    def store(
        self, src: int, index: Sequence[int], affine: Optional[tuple[Tensor, Tensor]] = None, act: int = 0
    ) -> None:
        """Selected channels of a map, normalised and activated, as the result."""
        offset = -1 if affine is None else self._weights.add(*affine)
        self._add(STORE, src, act, AFFINE * (affine is not None), offset, *index)

    @staticmethod
    def in_bands(first: list[int], followers: int) -> None:
        """Run a 1x1 convolution and the one or two instructions behind it band by band."""
        first[2 + 11] = followers

    def words(self) -> Tensor:
        """The plan, int32 ``(words,)``."""
        head = [MAGIC, self.in_channels, self.out_channels, len(self.maps), 1 + max(m[2] for m in self.maps),
                len(self.instructions)]  # fmt: skip
        flat = [word for part in (head, *self.maps, *self.instructions) for word in part]
        return torch.tensor(flat, dtype=torch.int32)

    def weights(self) -> Tensor:
        """The weights, float32 ``(floats,)``."""
        return self._weights.rounded()

    def _add(self, operation: int, *words: int) -> list[int]:
        self.instructions.append([operation, len(words), *words])
        return self.instructions[-1]
