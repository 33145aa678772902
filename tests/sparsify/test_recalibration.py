"""Statistics after a stage are those of the weights that are left; nothing else changes."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

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


def test_a_loader_of_images_and_labels_is_taken_as_it_is_and_its_randomness_stays():
    images = torch.arange(24.0).double().view(24, 1, 1, 1).expand(24, 3, 9, 9)
    dataset = TensorDataset(images, torch.arange(24))
    loader = DataLoader(dataset, 4, shuffle=True, generator=torch.Generator().manual_seed(1))
    model = network()

    def drawn():
        return random.random(), np.random.rand(), torch.rand(1).item(), [int(y[0]) for _, y in loader]

    def seed():
        random.seed(0), np.random.seed(0), torch.manual_seed(0), loader.generator.manual_seed(2)

    seed()
    expected = drawn()
    seed()
    seen = []
    assert recalibrate_norms(model, loader, num_batches=3, forward=lambda b: seen.append(model(b[0]))) == 2
    assert len(seen) == 3
    assert drawn() == expected
    assert recalibrate_norms(model, loader, num_batches=2) == 2
    with pytest.raises(ValueError, match='num_batches is 0'):
        recalibrate_norms(model, loader, num_batches=0)


def test_recalibrating_on_the_way_changes_no_weight_of_a_training():
    def trained(num_batches):
        torch.manual_seed(0)
        dataset = TensorDataset(torch.randn(32, 3, 9, 9).double(), torch.arange(32) % 4)
        loader = DataLoader(dataset, 8, shuffle=True)
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        sparsifier = StagedSparsifier(model, total_steps=24)
        for _ in range(6):
            for images, _ in loader:
                loss = model(images + torch.rand(()) + random.random()).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if sparsifier.step() and num_batches:
                    recalibrate_norms(model, loader, num_batches)
        return model

    random.seed(0)
    plain = trained(0)
    random.seed(0)
    measured = trained(2)
    for (name, a), b in zip(plain.named_parameters(), measured.parameters()):
        assert torch.equal(a, b), name
    assert not torch.equal(plain[1].norm.running_mean, measured[1].norm.running_mean)


@pytest.mark.parametrize('prefetched', [False, True])
def test_persistent_workers_go_on_with_their_batches(prefetched):
    images = torch.arange(24, dtype=torch.uint8).view(24, 1, 1, 1).expand(24, 3, 9, 9)
    dataset, model = TensorDataset(images, torch.arange(24)), network()

    def labels(measured):
        loader = DataLoader(dataset, 4, shuffle=True, num_workers=1, persistent_workers=True)
        if prefetched:
            loader = pytest.importorskip('timm.data.loader').PrefetchLoader(loader, device=torch.device('cpu'))
        torch.manual_seed(0)
        found = []
        for i, (_, target) in enumerate(loader):
            found += target.tolist()
            if measured and i == 1:
                assert recalibrate_norms(model, loader, 3, forward=lambda batch: model(batch[0].double())) == 2
        return found

    plain = labels(measured=False)
    assert sorted(plain) == [*range(24)] and labels(measured=True) == plain
