"""What others attach to the convolution inside a layer takes part in every state, or is refused in a sentence."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import prune, weight_norm

from cnv2_plugin.deploy import condense, lower
from cnv2_plugin.layers import LearnedGroupConv, SparseFeatureReactivation
from tests.deploy.test_known import FAMILIES, network
from tests.helpers import finish_pruning, randomize_norms, relative_difference

KINDS = {'lgc': LearnedGroupConv, 'sfr': SparseFeatureReactivation}
STATES = ('masked', 'packed', 'condensed')
EACH = [pytest.mark.parametrize('name', sorted(KINDS)), pytest.mark.parametrize('state', STATES)]


def each(test):
    for mark in EACH:
        test = mark(test)
    return test


def layer_in(name, state):
    torch.manual_seed(0)
    layer = randomize_norms(KINDS[name](12, 24, 4, 3)).eval()
    layer.prune_to(layer.num_stages)
    if state != 'masked':
        getattr(layer, {'packed': 'switch_to_packed', 'condensed': 'switch_to_deploy'}[state])()
    return layer


def image():
    return torch.randn(2, 12, 5, 5)


@each
def test_class_activation_maps_see_features_and_gradients(name, state):
    layer, seen = layer_in(name, state), []
    layer.conv.register_forward_hook(lambda module, given, result: seen.append(result))
    layer.conv.register_full_backward_hook(lambda module, given, gradient: seen.append(gradient[0]))
    layer(image()).square().sum().backward()
    features, gradient = seen
    assert torch.allclose(gradient, 2 * features, atol=1e-5) or state == 'condensed' and gradient.abs().sum() > 0


@each
def test_hooks_in_front_and_behind_change_what_the_layer_gives(name, state):
    layer, x = layer_in(name, state), image()
    expected = layer(x)
    layer.conv.register_forward_hook(lambda module, given, result: 3 * result)
    layer.conv.register_forward_pre_hook(lambda module, given: (2 * given[0], *given[1:]))
    assert relative_difference(layer(x), 6 * expected) < 1e-5


@each
def test_pruning_of_pytorch_takes_part_and_learns(name, state):
    layer, x = layer_in(name, state), image()
    with torch.no_grad():
        twin = copy.deepcopy(layer)
        importance = twin.conv.weight.abs().flatten()
        twin.conv.weight.view(-1)[importance.argsort()[: importance.numel() // 2]] = 0
    prune.l1_unstructured(layer.conv, 'weight', amount=importance.numel() // 2)
    for _ in range(2):
        layer(x).square().sum().backward()
    assert torch.equal(layer(x), twin(x)) and layer.conv.weight_orig.grad.abs().sum() > 0


@each
def test_old_weight_normalisation_trains_more_than_a_step(name, state):
    layer, x = layer_in(name, state), image()
    expected = layer(x)
    weight_norm(layer.conv)
    assert relative_difference(layer(x), expected) < 1e-5
    before = layer.conv.weight_g.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    assert not torch.equal(layer.conv.weight_g, before)


class Adapter(nn.Module):
    """A low-rank addition beside a convolution, as adapters wrap one."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Conv2d(base_layer.in_channels, 2, 1, bias=False)
        self.up = nn.Conv2d(2, base_layer.out_channels, 1, bias=False)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x, *args, **kwargs):
        return self.base_layer(x, *args, **kwargs) + self.up(self.down(x))


@pytest.mark.parametrize('state', ['masked', 'condensed'])
@pytest.mark.parametrize('name', sorted(KINDS))
def test_an_adapter_adds_to_the_masked_convolution(name, state):
    layer, x = layer_in(name, state), image()
    expected = layer(x)
    layer.conv = Adapter(layer.conv)
    nn.init.zeros_(layer.conv.up.weight)
    assert torch.equal(layer(x), expected)
    nn.init.normal_(layer.conv.up.weight)
    layer(x).sum().backward()
    assert layer.conv.down.weight.grad.abs().sum() > 0 and not torch.equal(layer(x), expected)


@pytest.mark.parametrize('state', ['masked', 'packed'])
@pytest.mark.parametrize('name', sorted(KINDS))
def test_a_convolution_that_knows_no_mask_is_refused(name, state):
    layer = layer_in(name, state)
    old = layer.conv
    layer.conv = nn.Conv2d(old.in_channels, old.out_channels, 1, groups=old.groups, bias=False)
    with pytest.raises(TypeError, match=r'conv is a torch.*Conv2d.*switch_to_deploy'):
        layer(image())


@pytest.mark.parametrize('attach', [
    lambda conv: conv.register_forward_hook(lambda *_: None),
    lambda conv: prune.l1_unstructured(conv, 'weight', amount=2),
    weight_norm,
    lambda conv: setattr(conv, 'forward', lambda x, *_: conv.weight.sum() * x),
])  # fmt: skip
@pytest.mark.parametrize('switch', ['switch_to_deploy', 'switch_to_packed'])
def test_what_is_attached_is_not_lost_by_a_switch(switch, attach):
    layer = layer_in('lgc', 'masked')
    attach(layer.conv)
    with pytest.raises(TypeError, match='conv'):
        getattr(layer, switch)()
    assert layer.state == 'masked' and layer(image()) is not None


def test_a_weight_that_something_else_cut_is_refused():
    layer = layer_in('lgc', 'masked')
    layer.conv.weight = nn.Parameter(layer.conv.weight.detach()[:20])
    with pytest.raises(ValueError, match=r'\(20, 12, 1, 1\).*\(24, 12, 1, 1\).*prune_to'):
        layer(image())


def finished(**options):
    torch.manual_seed(0)
    return finish_pruning(randomize_norms(timm.create_model('sfr_shufflenetv2_x0_5', num_classes=5, **options)))


def prepared(model):
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig('x86')
    return torch.ao.quantization.prepare_qat(model.train())


@pytest.mark.filterwarnings('ignore')
def test_eager_quantisation_sees_every_weight_or_is_refused():
    x = torch.randn(2, 3, 32, 32)
    with pytest.raises(TypeError, match='qconfig.*condense the model'):
        prepared(finished())(x)
    model = prepared(condense(finished()))
    model(x)
    quantisers = [module.weight_fake_quant for module in model.modules() if hasattr(module, 'weight_fake_quant')]
    assert quantisers and all(torch.isfinite(q.activation_post_process.min_val).all() for q in quantisers)


FORMS = {
    'masked': lambda model: model,
    'packed': lambda model: [layer.switch_to_packed() for layer in model.sparse_layers()] and model,
    'condensed': condense,
    'lowered': lambda model: lower(model, (3, 32, 32)),
    'native': lambda model: lower(model, (3, 32, 32), 'native'),
}


def mmcv(model):
    return pytest.importorskip('mmcv.cnn').fuse_conv_bn(model)


def fx(model):
    from torch.fx.experimental.optimization import fuse

    return fuse(model)


FUSED = [(form, name) for form in FORMS for name in FAMILIES if (form, name) != ('packed', 'shufflenetv2')]
"""All but the one family without layers to pack."""


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('fuse', [mmcv, fx])
@pytest.mark.parametrize(
    ('form', 'name'), [pytest.param(*case, marks=[pytest.mark.needs('kernels')] * ('native' in case)) for case in FUSED]
)
def test_fusers_of_normalisations_change_nothing(form, name, fuse):
    model = network(name)
    assert form != 'packed' or list(model.sparse_layers())
    model, x = FORMS[form](model), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        assert relative_difference(fuse(copy.deepcopy(model))(x), expected) < 1e-5
