"""Statistics after a stage are those of the weights that are left; nothing else changes."""

import copy

import pytest
import torch
from torch import nn

from cnv2_plugin.layers import LearnedGroupConv
from cnv2_plugin.sparsify import StagedSparsifier, recalibrate_norms


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), LearnedGroupConv(16, 32, groups=4, factor=4, drop_rate=0.5), nn.BatchNorm2d(32)
    ).double()


def test_statistics_are_the_average_over_the_batches():
    model, batches = network(), [torch.randn(8, 3, 9, 9).double() * (i + 1) for i in range(3)]
    StagedSparsifier(model, total_steps=12).set_progress(0.5)
    parameters = copy.deepcopy(dict(model.named_parameters()))
    assert recalibrate_norms(model, batches) == 2
    first = [model[0](batch) for batch in batches]
    assert torch.allclose(model[1].norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in first]).mean(0))
    variances = torch.stack([x.var((0, 2, 3)) for x in first]).mean(0)
    assert torch.allclose(model[1].norm.running_var, variances)
    assert all(torch.equal(value, parameters[name]) for name, value in model.named_parameters())
    assert all(module.training for module in model.modules())
    assert model[2].momentum == 0.1 and int(model[2].num_batches_tracked) == 0


def test_one_batch_makes_evaluation_agree_with_training_after_a_stage():
    model, batch = network(), torch.randn(64, 3, 9, 9).double()
    model[1].drop.p = 0.0
    for _ in range(60):
        model(batch)
    StagedSparsifier(model, total_steps=12).set_progress(0.5)
    trained = model(batch).detach()
    stale = (copy.deepcopy(model).eval()(batch) - trained).abs().max()
    recalibrate_norms(model, [batch])
    assert (model.eval()(batch) - trained).abs().max() < 1e-2 < stale


def test_frozen_normalisations_stay():
    model = network()
    model[2].eval()
    before = copy.deepcopy(model[2].state_dict())
    assert recalibrate_norms(model, [torch.randn(4, 3, 9, 9).double()]) == 1
    assert all(torch.equal(value, before[name]) for name, value in model[2].state_dict().items())
    assert not model[2].training and model[1].norm.training
    assert recalibrate_norms(model.eval(), []) == 0


def test_a_failing_batch_leaves_modes_and_momentum():
    model = network()
    with pytest.raises(RuntimeError):
        recalibrate_norms(model, [torch.randn(4, 5, 9, 9).double()])
    assert all(module.training for module in model.modules()) and model[2].momentum == 0.1
