"""Pruning by importances that the caller gives, instead of the papers' L1 norm."""

import pytest
import torch

from cnv2_plugin.layers import LearnedGroupConv, SparseFeatureReactivation


@pytest.mark.parametrize('layer', [LearnedGroupConv(12, 16, 4, 2), SparseFeatureReactivation(8, 12, 4, 2)])
def test_the_units_of_least_importance_go(layer):
    importance = torch.rand(layer.groups, layer.num_units, generator=torch.Generator().manual_seed(0))
    layer.prune_to(1, importance)
    for alive, row in zip(layer.grouping.by_unit(layer.mask)[..., 0], importance):
        order = row.argsort()
        assert not alive[order[: len(row) - layer.kept_per_group()]].any()
        assert alive[order[len(row) - layer.kept_per_group() :]].all()


def test_importances_that_rank_nothing_are_refused_unchanged():
    layer = LearnedGroupConv(12, 16, 4, 2)
    for importance, message in ((torch.ones(2, 2), r'\(2, 2\).*\(4, 12\)'), (torch.full((4, 12), torch.nan), 'NaN')):
        with pytest.raises(ValueError, match=message):
            layer.prune_to(1, importance)
    assert layer.mask.all() and int(layer.stage) == 0
