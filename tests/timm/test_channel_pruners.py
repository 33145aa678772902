"""torch-pruning cuts channels along a graph that knows neither masks nor gathers: said, and what is around is cut."""

import pytest
import torch
from torch import nn

from .test_as_a_module import FAMILIES, SIZE, form_of

torch_pruning = pytest.importorskip('torch_pruning')
IMPORTANCE = torch_pruning.importance.MagnitudeImportance()


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('form', ['masked', 'condensed', 'lowered'])
def test_cutting_a_network_is_refused_beforehand_in_a_sentence(family, form):
    model, images = form_of(family, form), torch.randn(1, *SIZE)
    with (
        pytest.warns(UserWarning, match='torch-pruning.*ignored_layers.*StagedSparsifier'),
        pytest.raises((ValueError, RuntimeError, LookupError, ZeroDivisionError)),
    ):
        torch_pruning.pruner.MagnitudePruner(model, images, importance=IMPORTANCE, pruning_ratio=0.5).step()
        model(images)


@pytest.mark.filterwarnings('ignore:torch-pruning')
@pytest.mark.parametrize('form', ['masked', 'condensed'])
def test_what_is_around_is_cut_and_counting_goes_on(form):
    model, images = form_of('condensenetv2', form), torch.randn(1, *SIZE)
    expected = model(images)
    assert torch_pruning.utils.count_ops_and_params(model, images)[0] > 0
    whole = nn.Sequential(model, nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 3))
    torch_pruning.pruner.MagnitudePruner(
        whole, images, importance=IMPORTANCE, pruning_ratio=0.5, ignored_layers=[model, whole[3]]
    ).step()
    assert whole[1].out_features == 16 and whole(images).shape == (1, 3)
    assert torch.equal(model(images), expected)
