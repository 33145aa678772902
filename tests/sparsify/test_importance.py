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


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize(
    ('make', 'shape'), [(LearnedGroupConv, (12, 16, 4, 5)), (SparseFeatureReactivation, (8, 12, 4, 5))]
)
def test_stage_by_stage_the_units_of_least_l1_norm_go_and_of_equal_ones_the_lower_channel(make, shape, ties):
    layer = make(*shape)
    weight = torch.randn(layer.conv.weight.shape, generator=torch.Generator().manual_seed(0))
    layer.conv.weight.data.copy_(weight.round() if ties else weight)
    matrix = layer.conv.weight.detach()[..., 0, 0].double().abs()
    alive = torch.ones(layer.groups, layer.num_units, dtype=torch.bool)
    for stage in range(1, layer.num_stages + 1):
        layer.prune_to(stage)
        for group in range(layer.groups):
            members = (
                matrix[group :: layer.groups] if layer.grouped_side == 'outputs' else matrix[:, group :: layer.groups].T
            )
            norms = [(float(norm), unit) for unit, norm in enumerate(members.sum(0)) if alive[group, unit]]
            for _, unit in sorted(norms)[: len(norms) - layer.kept_per_group(stage)]:
                alive[group, unit] = False
        assert torch.equal(layer.grouping.by_unit(layer.mask)[..., 0], alive)


def test_importances_that_rank_nothing_are_refused_unchanged():
    layer = LearnedGroupConv(12, 16, 4, 2)
    for importance, message in ((torch.ones(2, 2), r'\(2, 2\).*\(4, 12\)'), (torch.full((4, 12), torch.nan), 'NaN')):
        with pytest.raises(ValueError, match=message):
            layer.prune_to(1, importance)
    assert layer.mask.all() and int(layer.stage) == 0
