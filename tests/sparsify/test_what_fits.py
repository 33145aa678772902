"""What does not fit the layers is refused in a sentence; closures of optimisers are run with the lasso."""

import pytest
import torch
from torch import nn

from cnv2_plugin.layers import LearnedGroupConv, UnfinishedPruningError
from cnv2_plugin.sparsify import attach_sparsifier, pack_model
from tests.helpers import finish_pruning


def network(count=1, width=16):
    torch.manual_seed(0)
    return nn.Sequential(*(LearnedGroupConv(width, width, groups=4, factor=4) for _ in range(count)))


@pytest.mark.parametrize('count', [4, 5, 7])
def test_unfinished_layers_are_named_or_counted(count):
    with pytest.raises(UnfinishedPruningError, match='0 .stage 0 of 3') as refusal:
        pack_model(network(count))
    assert ('more' in str(refusal.value)) == (count > 4) and f'and {count - 4} more' in str(
        refusal.value
    ) + 'and 0 more'


@pytest.mark.parametrize('width', [8, 24])
def test_averages_of_other_shapes_are_refused_before_anything_changes(width):
    model = finish_pruning(network())
    with pytest.raises(ValueError, match='0 of the model'):
        pack_model(model, ema=finish_pruning(network(width=width)))
    assert not model[0].packed


@pytest.mark.parametrize('by_position', [True, False])
def test_a_closure_is_run_and_its_gradients_get_the_lasso(by_position):
    gradients = []
    for group_lasso in (0.0, 1.0):
        model = network().train()
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        attach_sparsifier(model, optimizer, total_steps=40, group_lasso=group_lasso)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 16, 4, 4)).square().mean()
            loss.backward()
            return loss

        loss = optimizer.step(closure) if by_position else optimizer.step(closure=closure)
        assert loss is not None
        gradients.append(model[0].conv.weight.grad.clone())
    assert not torch.equal(*gradients)
