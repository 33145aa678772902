"""CondenseNet's lossy step: dropping the classifier's least important inputs, an option that is off by default."""

import pytest
import timm
import torch

from cnv2_plugin.checkpoints import save_checkpoint
from cnv2_plugin.cli import main
from cnv2_plugin.deploy import classifier_cost, condense, export_onnx
from cnv2_plugin.layers import SelectiveLinear

from ..helpers import finish_pruning, randomize_norms, relative_difference

pytestmark = pytest.mark.smoke

ARCH = dict(layers=[1, 2], growth=[8, 16], groups_1x1=4, groups_3x3=4, condense_factor=4)


def trained(name='condensenet', **kwargs):
    torch.manual_seed(0)
    return finish_pruning(randomize_norms(timm.create_model(name, arch=ARCH, num_classes=7, **kwargs))).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_off_by_default(images):
    model = trained()
    for condensed in (condense(model), condense(model, classifier_keep=1)):
        assert type(condensed.classifier) is torch.nn.Linear
        with torch.no_grad():
            assert relative_difference(condensed(images), model(images)) < 1e-5


@pytest.mark.parametrize('name', ['condensenet', 'condensenetv2'])
def test_the_inputs_of_least_norm_go(name, images):
    model = trained(name)
    weight = model.classifier.weight.detach()
    norms = [sum(abs(v) for v in column) for column in weight.double().t().tolist()]
    order = sorted(range(len(norms)), key=lambda i: norms[i])
    kept = sorted(order[len(order) - len(order) // 2 :])
    condensed = condense(model, classifier_keep=0.5)
    assert condensed.classifier.index.tolist() == kept
    assert torch.equal(condensed.classifier.weight, weight[:, kept])
    zeroed = trained(name)
    with torch.no_grad():
        dropped = [i for i in range(len(norms)) if i not in kept]
        zeroed.classifier.weight[:, dropped] = 0
        assert relative_difference(condensed(images), zeroed(images)) < 1e-5
        assert relative_difference(condensed(images), model(images)) > 1e-3


def test_its_cost_is_told():
    model = trained()
    cost = classifier_cost(model, 0.5)
    importance = model.classifier.weight.detach().double().abs().sum(0).sort().values
    assert (cost.kept, cost.inputs) == (len(importance) // 2, len(importance))
    dropped = importance[: cost.inputs - cost.kept].sum() / importance.sum()
    assert cost.dropped_l1 == pytest.approx(dropped.item()) and 0 < cost.dropped_l1 < 0.5
    assert classifier_cost(condense(model, classifier_keep=0.5), 0.5).dropped_l1 == 0


def test_it_is_exact_where_nothing_is_dropped(images):
    model = trained()
    with torch.no_grad():
        model.classifier.weight[:, ::2] = 0
        assert classifier_cost(model, 0.5).dropped_l1 == 0
        assert relative_difference(condense(model, classifier_keep=0.5)(images), model(images)) < 1e-5


@pytest.mark.needs('onnx', 'onnxruntime')
def test_built_directly_loads_strictly_and_exports(images, tmp_path):
    condensed = condense(trained(), classifier_keep=0.3)
    built = timm.create_model('condensenet', arch=ARCH, num_classes=7, deploy=True, classifier_keep=0.3).eval()
    built.load_state_dict(condensed.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(built(images), condensed(images))
        assert torch.equal(torch.jit.script(built)(images), condensed(images))
    report = export_onnx(built, tmp_path / 'model.onnx', (3, 32, 32), batch=1)
    assert report.verification.max_rel < 1e-5
    built.reset_classifier(3)
    assert built.classifier.in_features == built.num_features
    state = condensed.state_dict()
    state['classifier.index'][0] = 10**6
    with pytest.raises(RuntimeError, match='classifier.index must lie in 0 to'):
        condensed.load_state_dict(state)


def test_condensing_twice_changes_nothing(images):
    once = condense(trained(), classifier_keep=0.5)
    twice = condense(once, classifier_keep=0.5)
    with torch.no_grad():
        assert torch.equal(twice(images), once(images))


def test_mmpretrain_classifiers_have_it_too():
    model = torch.nn.Module()
    model.backbone = trained()
    model.head = torch.nn.Module()
    model.head.fc = torch.nn.Linear(12, 4)
    condense(model, inplace=True, classifier_keep=0.5)
    assert isinstance(model.head.fc, SelectiveLinear) and model.head.fc.in_features == 6


@pytest.mark.parametrize('keep', [0, -0.5, 1.5, float('nan')])
def test_shares_out_of_range_are_refused(keep):
    model = trained()
    with pytest.raises(ValueError, match='classifier_keep is .* above 0 and at most 1'):
        condense(model, inplace=True, classifier_keep=keep)
    assert not model.deploy


def test_models_without_a_classifier_are_refused():
    with pytest.raises(ValueError, match='no linear classifier'):
        condense(torch.nn.Identity(), classifier_keep=0.5)
    model = trained()
    model.reset_classifier(0)
    with pytest.raises(ValueError, match='no linear classifier'):
        condense(model, classifier_keep=0.5)


def test_training_forms_do_not_take_it():
    with pytest.raises(ValueError, match='classifier_keep=0.5 is for deploy=True'):
        timm.create_model('condensenet', arch=ARCH, classifier_keep=0.5)


@pytest.mark.parametrize('kept', [0, 5])
def test_selective_linear_checks_its_number(kept):
    with pytest.raises(ValueError, match='of 4 inputs it takes 1 to 4'):
        SelectiveLinear(4, kept, 2)


def test_deploy_report_shows_what_it_costs(tmp_path, capsys):
    torch.manual_seed(0)
    model = finish_pruning(randomize_norms(timm.create_model('condensenet_50_cifar'))).eval()
    save_checkpoint(model.state_dict(), tmp_path / 'trained.pth')
    options = ['deploy', str(tmp_path / 'trained.pth'), '--arch', 'condensenet_50_cifar']
    out = str(tmp_path / 'deployed.safetensors')
    assert main([*options, '--out', out, '--classifier-keep', '0.5']) == 0
    shown = capsys.readouterr().out
    cost = classifier_cost(model, 0.5)
    for text in (f'{cost.kept}', f'{cost.dropped_l1:.1%}', 'same top-1 class', 'max relative difference by that'):
        assert text in shown
    source = dict(pretrained=True, pretrained_cfg_overlay=dict(file=out))
    loaded = timm.create_model('condensenet_50_cifar', deploy=True, classifier_keep=0.5, **source).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), condense(model, classifier_keep=0.5)(x))
    assert main([*options, '--out', out]) == 0
    assert 'top-1' not in capsys.readouterr().out


def test_any_number_of_inputs_from_one_on_is_kept():
    layer = SelectiveLinear(8, 2, 3)
    assert (layer.keep, layer.source_features, layer(torch.ones(1, 8)).shape) == (0.25, 8, (1, 3))
    for wrong in (0, 9):
        with pytest.raises(ValueError, match=f'{wrong}.*8'):
            SelectiveLinear(8, wrong, 3)
    assert SelectiveLinear.from_linear(torch.nn.Linear(10, 2), 0.01).weight.shape == (2, 1)
