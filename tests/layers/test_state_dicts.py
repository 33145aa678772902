"""State-dict keys, shapes and dtypes of every network, layer and form are those that users' files have."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import cnv2_plugin  # noqa: F401  registers the networks
from cnv2_plugin.layers import LearnedGroupConv
from cnv2_plugin.layers.known import treats_channels_alike
from cnv2_plugin.sparsify import pack_model
from tests.helpers import finish_pruning
from tools.research.authors_form import restated

from .state_dict_fingerprint import LAYERS, NETWORKS, fingerprint, forms

KNOWN = json.loads((Path(__file__).parent / 'state_dicts.json').read_text())


@pytest.mark.parametrize('name', [*NETWORKS, *LAYERS])
def test_every_form_has_the_keys_that_files_have(name):
    def build(**options) -> nn.Module:
        return LAYERS[name](**options) if name in LAYERS else timm.create_model(name, **options)

    assert dict(forms(build, restated)) == KNOWN[name]


def test_every_network_is_known():
    ours = {name for name in timm.list_models() if name.startswith(('condensenet', 'sfr_', 'shufflenet'))}
    assert ours - {'condensenet', 'condensenetv2', 'sfr_shufflenetv2', 'shufflenetv2'} == set(NETWORKS)


def test_a_renamed_key_and_another_shape_are_seen():
    prints = {fingerprint(nn.Linear(2, 3)), fingerprint(nn.Linear(3, 2)), fingerprint(nn.Linear(2, 3).half())}
    assert len(prints | {fingerprint(nn.Sequential(nn.Linear(2, 3)))}) == 4


@pytest.mark.parametrize('packed', [False, True])
def test_state_dicts_with_some_entries_only_load_what_they_have(packed):
    layer = finish_pruning(LearnedGroupConv(16, 16, groups=4, factor=2))
    state = layer.state_dict()
    other = finish_pruning(LearnedGroupConv(16, 16, groups=4, factor=2))
    if packed:
        pack_model(other)
    for left_out in (['conv.weight'], ['stage'], ['conv.weight', 'mask', 'stage']):
        kept = {key: value for key, value in state.items() if key not in left_out}
        assert other.load_state_dict(kept, strict=False).missing_keys == [key for key in state if key in left_out]
        assert torch.equal(other.mask, state['mask']) or 'mask' in left_out


def test_channels_are_treated_alike_only_where_maps_keep_their_size():
    index = torch.tensor([3, 1])
    assert treats_channels_alike(nn.Softplus(), index, 4) and not treats_channels_alike(nn.Softmax(1), index, 4)
    assert not treats_channels_alike(nn.MaxPool2d(2), index, 4)
