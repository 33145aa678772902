"""``SFRTopDown``: reactivation between the levels of a pyramid, before any neck of mmdet."""

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from cnv2_plugin.deploy import condense
from cnv2_plugin.toolkits.openmmlab import SFRTopDown
from tests.helpers import finish_pruning, randomize_norms, relative_difference


def neck(**options):
    torch.manual_seed(0)
    return SFRTopDown([24, 32, 40], groups=4, sparse_factor=2, **options)


def levels(dtype=torch.float32):
    return tuple(torch.randn(2, c, s, s, dtype=dtype) for c, s in ((24, 13), (32, 7), (40, 4)))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_condensed_is_exact_and_loads_strictly(dtype):
    masked = finish_pruning(randomize_norms(neck())).to(dtype).eval()
    x = levels(dtype)
    condensed = condense(masked)
    built = neck(deploy=True).to(dtype).eval()
    built.load_state_dict(condensed.state_dict())
    with torch.no_grad():
        for module in (condensed, built):
            assert max(map(relative_difference, module(x), masked(x))) < (1e-5 if dtype == torch.float32 else 1e-12)
    masked.switch_to_deploy()
    masked.switch_to_deploy()
    assert masked.deploy and not condensed.state_dict().keys() ^ masked.state_dict().keys()


def test_coarser_levels_reach_all_finer_ones():
    module, x = neck().eval(), levels()
    with torch.no_grad():
        before = module(x)
        after = module((x[0], x[1], x[2] + 1))
    assert all(not torch.equal(a, b) for a, b in zip(before, after))
    with torch.no_grad():
        after = module((x[0] + 1, x[1], x[2]))
    assert torch.equal(before[1], after[1]) and torch.equal(before[2], after[2])


def test_wrong_levels_are_refused():
    with pytest.raises(ValueError, match='2.*3'):
        neck()(levels()[:2])
    with pytest.raises(ValueError, match='groups=5'):
        SFRTopDown([24, 32], groups=5)


def test_it_stands_between_mappers_and_path_aggregation():
    pytest.importorskip('mmdet')
    common = dict(in_channels=[16, 16], out_channels=16)
    parts = [
        dict(type='ChannelMapper', **{**common, 'in_channels': [24, 32]}, kernel_size=1, num_outs=2),
        dict(type='SFRTopDown', in_channels=[16, 16], groups=4, sparse_factor=4),
        dict(type='CSPNeXtPAFPN', **common, num_csp_blocks=1),
    ]
    with DefaultScope.overwrite_default_scope('mmdet'):
        module = MODELS.build(parts).eval()
    finish_pruning(randomize_norms(module))
    x = tuple(torch.randn(1, c, s, s) for c, s in ((24, 8), (32, 4)))
    with torch.no_grad():
        assert max(map(relative_difference, condense(module)(x), module(x))) < 1e-5
