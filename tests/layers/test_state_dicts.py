"""State-dict keys, shapes and dtypes of every network, layer and form are those that users' files have."""

import json
from pathlib import Path

import pytest
import timm
from torch import nn

import cnv2_plugin  # noqa: F401  registers the networks
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
