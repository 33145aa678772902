"""What the authors' released files tell of a network's shape, and where the rest comes from."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from typing import Any, Optional

import torch
from torch import Tensor

from ..archs import CondenseNetArch, variants_of
from ..layers import kept_units
from .io import CheckpointError

LAYER = re.compile(r'features\.denseblock_(\d+)\.denselayer_(\d+)\.')


@dataclass
class Layout:
    """A released file as far as its tensors tell: fields of the shape that they settle, or narrow down to choices."""

    family: str
    form: str  # 'training' (masks) or 'converted' (index layers)
    known: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, list[int]] = field(default_factory=dict)


def read_layout(state: Mapping[str, Tensor]) -> Layout:
    """Family, form and shape by the names and shapes of tensors; raises ``CheckpointError`` for other networks'."""
    if 'stem.weight' in state and any(key.startswith('stages.') for key in state):
        raise CheckpointError('the file is in our own form already; load it into the model as it is.')
    if not any(LAYER.match(key) for key in state):
        raise CheckpointError(
            f'the file holds no CondenseNet or CondenseNetV2: there is no features.denseblock_1.denselayer_1 among its '
            f'keys (such as {", ".join(list(state)[:3])}); give a file that the authors released or their code wrote.'
        )
    masked = [key for key in state if key.endswith('._mask')]
    indexed = [key for key in state if key.endswith('.index') and LAYER.match(key)]
    if masked and indexed:
        raise CheckpointError(
            f'the file mixes the training form ({masked[0]}) and the converted form ({indexed[0]}); give a file of one.'
        )
    if not masked and not indexed:
        raise CheckpointError(
            'the file has neither masks (_mask, training form) nor index layers (index, converted form), so the groups '
            'of its convolutions cannot be told; give the file as it was released.'
        )
    family = 'CondenseNetV2' if any('.sfr.' in key for key in state) else 'CondenseNet'
    layout = Layout(family, 'training' if masked else 'converted')
    blocks = _blocks(state)
    _read_widths(state, blocks, layout)
    _read_groups(state, blocks, layout, 'conv_1', ('groups_1x1', 'condense_factor'))
    if family == 'CondenseNetV2':
        _read_groups(state, blocks, layout, 'sfr', ('groups_sfr', 'sparse_factor'))
    else:
        layout.known.update(groups_sfr=0, hswish_from=None)
    return layout


def _blocks(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Prefixes of the dense layers, by block."""
    blocks: list[list[str]] = []
    for block, layer in sorted({(int(match[1]), int(match[2])) for match in map(LAYER.match, state) if match}):
        if not blocks or block != len(blocks):
            blocks.append([])
        found = f'features.denseblock_{block}.denselayer_{layer}'
        expected = f'features.denseblock_{len(blocks)}.denselayer_{len(blocks[-1]) + 1}'
        if found != expected:
            raise CheckpointError(f'the file has {found} but lacks {expected}; it is incomplete, download it again.')
        blocks[-1].append(found)
    return blocks


def _read_widths(state: Mapping[str, Tensor], blocks: list[list[str]], layout: Layout) -> None:
    growth = [shape(state, f'{block[0]}.conv_2.conv.weight', 4)[0] for block in blocks]
    first = blocks[0][0]
    width = shape(state, f'{first}.conv_2.norm.weight', 1)[0]
    per_group = shape(state, f'{first}.conv_2.conv.weight', 4)[1]
    for name, whole, part in (('bottleneck', width, growth[0]), ('groups_3x3', width, per_group)):
        if part < 1 or whole % part:
            raise CheckpointError(
                f'{first}.conv_2 reads {width} channels in groups of {per_group} and gives {growth[0]}, '
                f'which no {name} explains; the file is damaged or of another network.'
            )
        layout.known[name] = whole // part
    layout.known.update(layers=tuple(map(len, blocks)), growth=tuple(growth))
    layout.known.update(se_from=None, se_reduction=1)
    with_se = next((i for i, block in enumerate(blocks) if f'{block[0]}.se.fc.0.weight' in state), None)
    if with_se is not None:
        name = f'{blocks[with_se][0]}.se'
        hidden, k = shape(state, f'{name}.fc.0.weight', 2)
        if hidden < 1 or k % hidden:
            raise CheckpointError(f'{name} has a hidden width of {hidden}, which does not divide {k}.')
        layout.known.update(se_from=with_se + 1, se_reduction=k // hidden)
    head = {'fc.weight', 'features.se_last.fc.0.weight'}
    if head & set(state) and not head <= set(state):
        raise CheckpointError(f'the file lacks {(head - set(state)).pop()} of the head; it is incomplete.')
    layout.known['head_width'] = shape(state, 'fc.weight', 2)[0] if head <= set(state) else None


def _read_groups(
    state: Mapping[str, Tensor], blocks: list[list[str]], layout: Layout, part: str, names: tuple[str, str]
) -> None:
    """Groups and factor of one kind of learned sparse convolution, as far as masks or index layers tell."""
    read = _masked_choices if layout.form == 'training' else _converted_choices
    units = shape(state, 'features.init_conv.weight', 4)[0]
    common: list[set[int]] = []
    for block, growth in zip(blocks, layout.known['growth']):
        for layer in block:
            told = read(state, f'{layer}.{part}', part, units, growth)
            if told is not None:
                groups, factors = told
                own = [groups, factors, {factor for factor in factors if units % factor == 0}]
                common = [a & b for a, b in zip(common, own)] if common else own
                if not common[0] or not common[1]:
                    raise CheckpointError(
                        f'{layer}.{part} keeps another share of its channels, or has another number of groups, than '
                        f'the layers before it; the file is damaged or of another network.'
                    )
            units += growth
    if common:
        layout.choices[names[0]] = sorted(common[0])
        layout.choices[names[1]] = sorted(common[2] or common[1])


Told = Optional[tuple[set[int], set[int]]]
"""Numbers of groups and factors that a layer leaves possible; None where it tells nothing."""


def _masked_choices(state: Mapping[str, Tensor], prefix: str, part: str, units: int, growth: int) -> Told:
    """As the mask of a layer tells; nothing before the first stage."""
    mask = read_mask(state, prefix)
    stage = read_count(state, f'{prefix}._stage')
    if stage == 0:
        return None
    if part == 'conv_1':
        mask = mask.t()
    units, members = mask.shape
    groups = {
        g for g in range(1, members + 1) if members % g == 0 and torch.equal(mask, mask[:, :g].repeat(1, members // g))
    }
    alive = {int(count) for count in mask.sum(0)}
    if len(alive) > 1:
        raise CheckpointError(
            f'{prefix}._mask keeps {min(alive)} channels in one group and {max(alive)} in another; all groups keep the '
            f'same number, so the file is damaged.'
        )
    kept = alive.pop()
    factors = {c for c in range(stage + 1, max(units, stage + 1) + 1) if kept_units(units, c, stage) == kept}
    if not factors:
        raise CheckpointError(
            f'{prefix}._mask keeps {kept} of {units} channels at stage {stage}, which fits no condense or '
            f'sparse factor.'
        )
    return groups, factors


def _converted_choices(state: Mapping[str, Tensor], prefix: str, part: str, units: int, growth: int) -> Told:
    """As the shapes of the weight and the index layer of a layer tell."""
    weight, index = shape(state, f'{prefix}.conv.weight', 4), state.get(f'{prefix}.index')
    if index is None:
        raise CheckpointError(f'the file lacks {prefix}.index; it is incomplete, download it again.')
    rows, groups = (index.numel(), 0) if part == 'conv_1' else (weight[0], growth // max(weight[1], 1))
    if part == 'conv_1' and weight[1]:
        groups = rows // weight[1]
    kept = rows // max(groups, 1)
    if not kept or groups * kept != rows or (weight[0] % groups if part == 'conv_1' else growth != groups * weight[1]):
        raise CheckpointError(
            f'{prefix} has a weight {weight} and {rows} index rows, which is no whole number of groups; '
            f'the file is damaged.'
        )
    return {groups}, {c for c in range(1, units + 1) if -(-units // c) == kept}


def shape(state: Mapping[str, Tensor], key: str, dimensions: int) -> tuple[int, ...]:
    """Shape of a tensor; raises ``CheckpointError`` unless it is there and has so many dimensions."""
    if key not in state:
        raise CheckpointError(f'the file lacks {key}; it is incomplete, or of another network.')
    if state[key].ndim != dimensions:
        raise CheckpointError(f'{key} has the shape {tuple(state[key].shape)}; it takes {dimensions} dimensions.')
    return tuple(state[key].shape)


def read_mask(state: Mapping[str, Tensor], prefix: str) -> Tensor:
    """The mask of a layer as a bool matrix ``(O, I)``; averaged masks that have settled are rounded."""
    weight = shape(state, f'{prefix}.conv.weight', 4)
    if shape(state, f'{prefix}._mask', 4) != weight:
        raise CheckpointError(
            f'{prefix}._mask has the shape {tuple(state[f"{prefix}._mask"].shape)} but its weight {weight}.'
        )
    mask = state[f'{prefix}._mask'].double()
    rounded = mask.round()
    if not bool(((mask - rounded).abs() < 1e-2).all()) or not bool(((rounded == 0) | (rounded == 1)).all()):
        raise CheckpointError(
            f'{prefix}._mask holds values besides 0 and 1; where these are averaged weights (state_dict_ema) of an '
            f'unfinished training, read the plain ones with use_ema=False (--no-ema).'
        )
    return rounded.flatten(1).bool()


def read_count(state: Mapping[str, Tensor], key: str) -> int:
    """A counter that is a tensor of one number; raises ``CheckpointError`` unless that is whole and at least 0."""
    if key not in state:
        raise CheckpointError(f'the file lacks {key}; it is incomplete.')
    if state[key].numel() != 1:
        raise CheckpointError(f'{key} has {state[key].numel()} numbers; it takes one.')
    value = float(state[key].item())
    if not isfinite(value) or value < -0.01 or abs(value - round(value)) > 0.01:
        raise CheckpointError(f'{key} is {value}; it takes a whole number of at least 0.')
    return round(value)


def settle_arch(layout: Layout, args: Any, overrides: Mapping[str, Any]) -> CondenseNetArch:
    """The shape: what the tensors tell, then overrides, the file's ``args``, or a published network that agrees."""
    names = [f.name for f in fields(CondenseNetArch)]
    unknown = sorted(set(overrides) - set(names))
    if unknown:
        raise ValueError(f'arch has no fields {", ".join(unknown)}; it takes {", ".join(names)}.')
    given = {**_from_args(args), **{key: _plain(value) for key, value in overrides.items()}}
    settled = dict(layout.known)
    for name, values in layout.choices.items():
        if name in given and given[name] not in values:
            raise CheckpointError(
                f'the tensors need {name} to be one of {_shown(values)}, but the arguments say {given[name]}.'
            )
        if len(values) == 1 or name.startswith('groups_') and name not in given:
            settled[name] = values[0]
    for name, value in given.items():
        if settled.setdefault(name, value) != value:
            raise CheckpointError(f'the tensors need {name}={settled[name]}, but the arguments say {value}.')
    if layout.family == 'CondenseNet':
        settled.setdefault('sparse_factor', CondenseNetArch.sparse_factor)
    settled = _complete_from_variant(settled, layout)
    missing = [name for name in names if name not in settled]
    if missing:
        options = ''.join(
            f' ({name}: one of {_shown(layout.choices[name])})' for name in missing if name in layout.choices
        )
        raise CheckpointError(
            f'nothing in the file tells {", ".join(missing)}{options}; give {"them" if len(missing) > 1 else "it"}, '
            f'for example {", ".join(f"{name}=..." for name in missing)} (on the command line: --arch NAME=VALUE).'
        )
    try:
        return CondenseNetArch(**settled)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f'the tensors make no network: {error}') from error


def _complete_from_variant(settled: dict[str, Any], layout: Layout) -> dict[str, Any]:
    for variant in variants_of(layout.family).values():
        arch = asdict(variant.arch)
        if all(arch[name] == value for name, value in settled.items()):
            if all(arch[name] in values for name, values in layout.choices.items()):
                return arch
    return settled


def _from_args(args: Any) -> dict[str, Any]:
    """Fields of the shape in a training file's ``args``; the authors count blocks from 0 and name some otherwise."""
    values = args if isinstance(args, Mapping) else vars(args) if hasattr(args, '__dict__') else {}
    names = dict(
        stages='layers', growth='growth', bottleneck='bottleneck', group_1x1='groups_1x1', group_3x3='groups_3x3',
        group_trans='groups_sfr', condense_factor='condense_factor', trans_factor='sparse_factor',
        fc_channel='head_width',
    )  # fmt: skip
    found = {ours: _plain(values[theirs]) for theirs, ours in names.items() if values.get(theirs) is not None}
    blocks = len(found['layers']) if isinstance(found.get('layers'), tuple) else 0
    for theirs, ours in (('HS_start_block', 'hswish_from'), ('SE_start_block', 'se_from')):
        start = values.get(theirs)
        if isinstance(start, int) and blocks:
            found[ours] = start + 1 if start < blocks else None
    if isinstance(values.get('dataset'), str):
        found['stem_stride'] = 1 if values['dataset'] in ('cifar10', 'cifar100') else 2
    return found


def _plain(value: Any) -> Any:
    """Lists, and text such as ``4-6-8``, as tuples of whole numbers."""
    if isinstance(value, str) and re.fullmatch(r'\d+(-\d+)+', value):
        value = value.split('-')
    return tuple(map(int, value)) if isinstance(value, (list, tuple)) else value


def _shown(values: Iterable[int]) -> str:
    values = list(values)
    return ', '.join(map(str, values[:6])) + (' and more' if len(values) > 6 else '')
