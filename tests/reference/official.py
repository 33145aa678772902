"""The released networks and their files, as functions on flat state dicts.

`random_state_dict` writes a training form (masks, counts, stages), `convert` turns it into a converted form (gathered
channels, index matrices), `forward` runs either, `training_file` and `converted_file` wrap a state dict as the released
files do.

What the files are made of, as read in the two authors' repositories:

- CondenseNetV2, training: ``epoch, arch, state_dict, optimizer, args, version, state_dict_ema, metric``, keys without
  prefix. ``args`` is the ``argparse.Namespace`` of the run. From the command line it has ``model`` (``cdnv2_a`` and so
  on, the same string as ``arch``), ``dataset`` (the stem's stride is 1 for ``cifar10`` and ``cifar100``, else 2) and
  ``num_classes``. The model's constructor adds ``stages`` and ``growth`` (as lists of int), ``bottleneck``,
  ``group_1x1``, ``condense_factor``, ``group_3x3``, ``group_trans`` (groups of SFR), ``trans_factor`` (sparse factor of
  SFR), ``last_se_reduction``, ``fc_channel`` and, counted from 0, ``HS_start_block`` and ``SE_start_block``.
- CondenseNetV2, converted: ``state_dict`` alone, keys without prefix.
- CondenseNet, training: ``epoch, model, state_dict, best_prec1, optimizer``, keys with ``module.``, no ``args``.
- CondenseNet, converted: ``state_dict`` alone, keys with ``module.``.
"""

import argparse
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from .layers import (
    NORM_KEYS,
    Activation,
    Norm,
    batch_norm,
    condense_lgc,
    condense_sfr,
    hard_swish,
    lgc_condensed,
    lgc_masked,
    relu,
    sfr_masked,
    sfr_rows,
)
from .schedule import alive_units, count_units, prune

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Net:
    """What a network is made of. Blocks are counted from 1; None means never, or without.

    Attributes:
        family: ``'v1'`` (CondenseNet) or ``'v2'`` (CondenseNetV2).
        layers: Dense layers per block.
        growth: Growth per block.
        bottleneck: The LGC's outputs are this many times the growth.
        group_1x1: Groups of the LGCs.
        group_3x3: Groups of the 3x3 convolutions.
        condense_factor: Condense factor of the LGCs.
        group_trans: Groups of the SFRs.
        trans_factor: Sparse factor of the SFRs.
        hswish_from: First block with hard-swish instead of ReLU.
        se_from: First block with squeeze-excite.
        last_se_reduction: Reduction of the squeeze-excite after the last pool.
        fc_channel: Width of the linear layer before the classifier.
        num_classes: Outputs of the classifier.
        stem_stride: Stride of the stem.
    """

    family: str
    layers: tuple[int, ...]
    growth: tuple[int, ...]
    bottleneck: int = 4
    group_1x1: int = 8
    group_3x3: int = 8
    condense_factor: int = 8
    group_trans: int = 8
    trans_factor: int = 8
    hswish_from: int | None = None
    se_from: int | None = None
    last_se_reduction: int | None = None
    fc_channel: int | None = None
    num_classes: int = 1000
    stem_stride: int = 2


def _imagenet_v2(layers: tuple[int, ...], growth: tuple[int, ...], groups: int, fc_channel: int) -> Net:
    return Net(
        family='v2',
        layers=layers,
        growth=growth,
        group_1x1=groups,
        group_3x3=groups,
        condense_factor=groups,
        group_trans=groups,
        trans_factor=groups,
        hswish_from=3,
        se_from=4,
        last_se_reduction=16,
        fc_channel=fc_channel,
    )


def _v1(layers: tuple[int, ...], growth: tuple[int, ...], groups: int, **settings) -> Net:
    return Net('v1', layers, growth, group_1x1=groups, group_3x3=groups, condense_factor=groups, **settings)


NETS = {
    'a': _imagenet_v2((1, 1, 4, 6, 8), (8, 8, 16, 32, 64), groups=8, fc_channel=828),
    'b': _imagenet_v2((2, 4, 6, 8, 6), (6, 12, 24, 48, 96), groups=6, fc_channel=1024),
    'c': _imagenet_v2((4, 6, 8, 10, 8), (8, 16, 32, 64, 128), groups=8, fc_channel=1024),
    '110-cifar': Net('v2', (12, 12, 12), (8, 16, 32), group_3x3=4, num_classes=10, stem_stride=1),
    '146-cifar': Net('v2', (16, 16, 16), (8, 16, 32), group_3x3=4, num_classes=10, stem_stride=1),
    '74-g4': _v1((4, 6, 8, 10, 8), (8, 16, 32, 64, 128), groups=4),
    '74-g8': _v1((4, 6, 8, 10, 8), (8, 16, 32, 64, 128), groups=8),
    '86-cifar': _v1((14, 14, 14), (8, 16, 32), groups=4, num_classes=10, stem_stride=1),
}


class _Draw:
    """Draws random tensors of one dtype from one generator."""

    def __init__(self, generator: torch.Generator | None, dtype: torch.dtype) -> None:
        self.generator = generator
        self.dtype = dtype

    def normal(self, *shape: int, std: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, dtype=self.dtype) * std

    def linear(self, *shape: int, gain: float = 1.0) -> torch.Tensor:
        return self.normal(*shape, std=gain / math.sqrt(math.prod(shape[1:])))

    def positive(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator, dtype=self.dtype) + 0.5

    def norm(self, prefix: str, channels: int) -> State:
        scale = self.positive(channels)
        scale[1::4] *= -1
        return {
            f'{prefix}.weight': scale,
            f'{prefix}.bias': self.normal(channels, std=0.5),
            f'{prefix}.running_mean': self.normal(channels, std=0.5),
            f'{prefix}.running_var': self.positive(channels),
            f'{prefix}.num_batches_tracked': torch.tensor(1000),
        }

    def masked(
        self, prefix: str, shape: tuple[int, int], groups: int, factor: int, stage: int | None, kind: str
    ) -> State:
        final = factor - 1
        stage = final if stage is None else min(stage, final)
        outputs, inputs = shape
        weight = self.linear(outputs, inputs, 1, 1)
        mask = prune(weight, torch.ones_like(weight), groups, factor, 0, stage, kind)
        n = count_units(weight, kind)
        return {
            f'{prefix}._count': torch.tensor([n - alive_units(n, factor, stage)], dtype=self.dtype),
            f'{prefix}._stage': torch.tensor([stage], dtype=self.dtype),
            f'{prefix}._mask': mask,
            **self.norm(f'{prefix}.norm', inputs),
            f'{prefix}.conv.weight': weight,
        }


def random_state_dict(
    net: Net,
    stage: int | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> State:
    """Writes a random state dict of the released training form, keys in the released order.

    Args:
        net: The network.
        stage: Pruning stages done in every layer, by the rules of the schedule; None: all of them.
        generator: Where the random numbers come from; None: torch's global generator.
        dtype: Of all floats, masks, counts and stages included.
    """
    draw = _Draw(generator, dtype)
    channels = 2 * net.growth[0]
    state = {'features.init_conv.weight': draw.linear(channels, 3, 3, 3, gain=2)}
    for block, (layers, k) in enumerate(zip(net.layers, net.growth, strict=True), 1):
        for layer in range(1, layers + 1):
            at = f'features.denseblock_{block}.denselayer_{layer}'
            hidden = net.bottleneck * k
            state |= draw.masked(f'{at}.conv_1', (hidden, channels), net.group_1x1, net.condense_factor, stage, 'lgc')
            state |= draw.norm(f'{at}.conv_2.norm', hidden)
            state[f'{at}.conv_2.conv.weight'] = draw.linear(k, hidden // net.group_3x3, 3, 3)
            if net.family == 'v2':
                state |= draw.masked(f'{at}.sfr', (channels, k), net.group_trans, net.trans_factor, stage, 'sfr')
            if net.se_from and block >= net.se_from:
                state[f'{at}.se.fc.0.weight'] = draw.linear(k, k, gain=4)
                state[f'{at}.se.fc.2.weight'] = draw.linear(k, k, gain=4)
            channels += k
    state |= draw.norm('features.norm_last', channels)
    if net.last_se_reduction:
        squeezed = channels // net.last_se_reduction
        state['features.se_last.fc.0.weight'] = draw.linear(squeezed, channels, gain=4)
        state['features.se_last.fc.2.weight'] = draw.linear(channels, squeezed, gain=4)
    if net.fc_channel:
        state['fc.weight'] = draw.linear(net.fc_channel, channels, gain=4)
        state['fc.bias'] = draw.normal(net.fc_channel)
        channels = net.fc_channel
    state['classifier.weight'] = draw.linear(net.num_classes, channels, gain=4)
    state['classifier.bias'] = draw.normal(net.num_classes)
    return state


def count_parameters(state: State) -> int:
    """Returns the number of trained numbers: every weight and bias, masked or not."""
    return sum(value.numel() for key, value in state.items() if key.endswith(('.weight', '.bias')))


def without_counters(state: State) -> State:
    """Returns the state dict as older PyTorch wrote it, without ``num_batches_tracked``."""
    return {key: value for key, value in state.items() if not key.endswith('.num_batches_tracked')}


def _norm(state: State, prefix: str) -> Norm:
    return {key: state[f'{prefix}.{key}'] for key in NORM_KEYS}


def _converted_layer(state: State, prefix: str, net: Net) -> State:
    norm, weight, mask = _norm(state, f'{prefix}.norm'), state[f'{prefix}.conv.weight'], state[f'{prefix}._mask']
    if prefix.endswith('.conv_1'):
        condensed = condense_lgc(norm, weight, mask, net.group_1x1)
        index = condensed['index']
    else:
        condensed = condense_sfr(norm, weight, mask, net.group_trans)
        index = weight.new_zeros(len(condensed['index']), condensed['out_channels'])
        for row, feature in enumerate(condensed['index'].tolist()):
            index[row, feature] = 1
    converted = {f'{prefix}.index': index}
    converted |= {f'{prefix}.norm.{key}': condensed['norm'][key] for key in NORM_KEYS}
    if f'{prefix}.norm.num_batches_tracked' in state:
        converted[f'{prefix}.norm.num_batches_tracked'] = torch.tensor(0)
    converted[f'{prefix}.conv.weight'] = condensed['weight']
    return converted


def convert(state: State, net: Net, drop_classifier_inputs: bool = False) -> State:
    """Turns a finished training form into the converted form.

    Args:
        state: Training form in which every stage is done.
        net: The network.
        drop_classifier_inputs: Also drop the half of the classifier's inputs with the smallest L1 norm (V1's authors
            do; lossy). Those kept are listed from the least to the most important.
    """
    converted = {}
    for key, value in state.items():
        layer, _, name = key.rpartition('.')
        owner = layer.removesuffix('.norm').removesuffix('.conv')
        if f'{owner}._mask' not in state:
            converted[key] = value
        elif name == '_mask':
            converted |= _converted_layer(state, owner, net)
    if drop_classifier_inputs:
        weight, bias = converted.pop('classifier.weight'), converted.pop('classifier.bias')
        inputs = weight.shape[1]
        importance = [math.fsum(abs(value) for value in column) for column in weight.T.tolist()]
        index = torch.tensor(sorted(range(inputs), key=lambda i: importance[i])[inputs - inputs // 2 :])
        converted['classifier.index'] = index
        converted['classifier.linear.weight'] = weight[:, index]
        converted['classifier.linear.bias'] = bias
    return converted


def _squeeze_excite(state: State, prefix: str, x: torch.Tensor) -> torch.Tensor:
    squeezed = relu(x.mean((2, 3)) @ state[f'{prefix}.fc.0.weight'].T)
    gate = torch.sigmoid(squeezed @ state[f'{prefix}.fc.2.weight'].T)
    return x * gate[:, :, None, None]


def _lgc(state: State, prefix: str, x: torch.Tensor, groups: int, act: Activation) -> torch.Tensor:
    norm, weight = _norm(state, f'{prefix}.norm'), state[f'{prefix}.conv.weight']
    if f'{prefix}._mask' in state:
        return lgc_masked(x, norm, weight, state[f'{prefix}._mask'], act)
    condensed = {'index': state[f'{prefix}.index'], 'norm': norm, 'weight': weight, 'groups': groups}
    return lgc_condensed(x, condensed, act)


def _sfr(state: State, prefix: str, x: torch.Tensor, groups: int, act: Activation) -> torch.Tensor:
    norm, weight = _norm(state, f'{prefix}.norm'), state[f'{prefix}.conv.weight']
    if f'{prefix}._mask' in state:
        return sfr_masked(x, norm, weight, state[f'{prefix}._mask'], act)
    return torch.einsum('nrhw,ro->nohw', sfr_rows(x, norm, weight, groups, act), state[f'{prefix}.index'])


def _dense_layer(state: State, prefix: str, x: torch.Tensor, net: Net, act: Activation) -> torch.Tensor:
    h = _lgc(state, f'{prefix}.conv_1', x, net.group_1x1, act)
    h = act(batch_norm(h, _norm(state, f'{prefix}.conv_2.norm')))
    f = F.conv2d(h, state[f'{prefix}.conv_2.conv.weight'], padding=1, groups=net.group_3x3)
    if f'{prefix}.se.fc.0.weight' in state:
        f = _squeeze_excite(state, f'{prefix}.se', f)
    if net.family == 'v2':
        x = x + _sfr(state, f'{prefix}.sfr', f, net.group_trans, act)
    return torch.cat([x, f], 1)


def forward_features(state: State, x: torch.Tensor, net: Net) -> list[torch.Tensor]:
    """Runs the stem and the blocks in eval mode.

    Returns:
        The output of each block, before the pool that follows it and before ``norm_last``.
    """
    x = F.conv2d(x, state['features.init_conv.weight'], stride=net.stem_stride, padding=1)
    outputs = []
    for block, layers in enumerate(net.layers, 1):
        if block > 1:
            x = F.avg_pool2d(x, 2)
        act = hard_swish if net.hswish_from and block >= net.hswish_from else relu
        for layer in range(1, layers + 1):
            x = _dense_layer(state, f'features.denseblock_{block}.denselayer_{layer}', x, net, act)
        outputs.append(x)
    return outputs


def forward(state: State, x: torch.Tensor, net: Net) -> torch.Tensor:
    """Runs a network in eval mode.

    Args:
        state: Training or converted form, keys without prefix.
        x: Images ``[N, 3, H, W]``.
        net: The network.

    Returns:
        Logits ``[N, classes]``.
    """
    x = forward_features(state, x, net)[-1]
    x = relu(batch_norm(x, _norm(state, 'features.norm_last'))).mean((2, 3), keepdim=True)
    if 'features.se_last.fc.0.weight' in state:
        x = _squeeze_excite(state, 'features.se_last', x)
    x = x.flatten(1)
    if 'fc.weight' in state:
        x = hard_swish(x @ state['fc.weight'].T + state['fc.bias'])
    if 'classifier.index' in state:
        x = x[:, state['classifier.index']]
        return x @ state['classifier.linear.weight'].T + state['classifier.linear.bias']
    return x @ state['classifier.weight'].T + state['classifier.bias']


def with_prefix(state: State, prefix: str = 'module.') -> State:
    """Returns the state dict as a wrapped model writes it."""
    return {prefix + key: value for key, value in state.items()}


def namespace(net: Net, model: str = 'cdnv2_c') -> argparse.Namespace:
    """Returns the ``args`` of a CondenseNetV2 training file, as far as they tell of the model, and some of the run."""
    never = len(net.layers)
    return argparse.Namespace(
        model=model,
        dataset='imagenet' if net.stem_stride == 2 else 'cifar10',
        num_classes=net.num_classes,
        stages=list(net.layers),
        growth=list(net.growth),
        bottleneck=net.bottleneck,
        group_1x1=net.group_1x1,
        group_3x3=net.group_3x3,
        group_trans=net.group_trans,
        condense_factor=net.condense_factor,
        trans_factor=net.trans_factor,
        last_se_reduction=net.last_se_reduction,
        HS_start_block=never if net.hswish_from is None else net.hswish_from - 1,
        SE_start_block=never if net.se_from is None else net.se_from - 1,
        fc_channel=net.fc_channel,
        epochs=350,
        batch_size=1024,
        lr=0.4,
        opt='sgd',
        sched='cos',
        weight_decay=4e-5,
        lr_noise=[0.42, 0.9],
        model_ema=True,
        model_ema_decay=0.9998,
        distributed=True,
        device='cuda:0',
        resume='',
        img_size=None,
    )


def training_file(state: State, net: Net, ema: State | None = None, model: str = 'cdnv2_c') -> dict:
    """Wraps a training form as the authors save it during training.

    Args:
        state: Training form, keys without prefix.
        net: The network.
        ema: For V2, the averaged weights.
        model: For V2, the name in ``arch`` and ``args.model``.
    """
    optimizer = {'state': {}, 'param_groups': [{'lr': 0.1, 'momentum': 0.9, 'nesterov': True, 'params': [0]}]}
    if net.family == 'v1':
        return {
            'epoch': 119,
            'model': 'condensenet',
            'state_dict': with_prefix(state),
            'best_prec1': 26.2,
            'optimizer': optimizer,
        }
    content = {
        'epoch': 349,
        'arch': model,
        'state_dict': state,
        'optimizer': optimizer,
        'args': namespace(net, model),
        'version': 2,
    }
    if ema is not None:
        content['state_dict_ema'] = ema
    return content | {'metric': 75.9}


def converted_file(state: State, net: Net) -> dict:
    """Wraps a converted form as the authors release it."""
    return {'state_dict': with_prefix(state) if net.family == 'v1' else state}


def small(name: str, **changes) -> Net:
    """Returns a network of `NETS` with one or two layers per block and ten classes, for tests that must be quick."""
    net = NETS[name]
    layers = tuple(min(number, 2) for number in net.layers)
    return replace(net, **({'layers': layers, 'num_classes': 10} | changes))
