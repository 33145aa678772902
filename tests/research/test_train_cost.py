"""The yardstick computes what ours does, and memory is counted where it can be counted by hand."""

import json

import pytest
import timm
import torch
from torch import nn

import cnv2_plugin  # noqa: F401
from tests.helpers import finish_pruning, random_arch, randomize_norms, relative_difference
from tools.research.authors_form import RestatedLayer, restated
from tools.research.benchmark import main
from tools.research.train_cost import TRAINING_FORMS, peak_memory, training_cost


def model_of(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomize_norms(timm.create_model('condensenetv2', arch=random_arch(seed), num_classes=5))


@pytest.mark.parametrize('form', TRAINING_FORMS)
def test_every_form_trains_the_same_function(form):
    model = model_of().double().train()
    reference = finish_pruning(TRAINING_FORMS['masked'](model))
    measured = TRAINING_FORMS[form](model)
    assert any(isinstance(m, RestatedLayer) for m in measured.modules()) == (form == 'authors')
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    outputs = [m(x) for m in (reference, measured)]
    assert relative_difference(outputs[1], outputs[0]) < 1e-11
    for output in outputs:
        output.square().sum().backward()
    assert relative_difference(measured.stem.weight.grad, reference.stem.weight.grad) < 1e-9
    assert next(model.sparse_layers()).mask.all()


def test_the_restated_form_notices_a_stage_that_is_due():
    model = restated(model_of())
    layer = next(m for m in model.modules() if isinstance(m, RestatedLayer))
    layer.progress.value = 0.9
    with pytest.raises(RuntimeError, match='between two stages'):
        model(torch.randn(1, 3, 32, 32))


def test_memory_is_that_of_the_live_results():
    layer = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Sigmoid(), nn.Conv2d(1, 1, 1, bias=False))
    image = 4 * 8 * 8
    peak = peak_memory(layer, (1, 8, 8), batch=1)
    assert 3 * image <= peak <= 6 * image
    assert peak_memory(layer, (1, 8, 8), batch=3) == pytest.approx(3 * peak, abs=64)


def test_checkpointing_needs_at_most_half_of_the_memory():
    costs = training_cost({'tiny': model_of(1)}, (3, 32, 32), batch=2, rounds=2, forms=['masked', 'condensed'])
    assert [(c.form, c.memory_format) for c in costs] == [
        (form, layout) for layout in ('contiguous', 'channels_last') for form in ('masked', 'condensed')
    ]
    assert all(0 < c.peak_bytes_checkpointed < c.peak_bytes and c.seconds > 0 and c.ratio > 0 for c in costs)
    assert all(c.ratio == 1 for c in costs if c.form == 'masked')


@pytest.mark.slow
@pytest.mark.parametrize('variant', 'abc')
def test_published_variants_checkpoint_to_half(variant):
    model = timm.create_model(f'condensenetv2_{variant}').train()
    plain = peak_memory(model, (3, 224, 224), 8)
    authors_peak = peak_memory(restated(model), (3, 224, 224), 8)
    model.set_grad_checkpointing()
    assert peak_memory(model, (3, 224, 224), 8) <= plain / 2
    assert plain <= authors_peak * 1.01


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(forms=['dense']), 'form dense: choose from authors, masked, condensed'),
        (dict(memory_formats=['nhwc']), 'memory format nhwc: choose from contiguous'),
        (dict(batch=0), 'batch is 0'),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        training_cost({'tiny': model_of()}, (3, 32, 32), **options)


@pytest.mark.slow
def test_command_prints_ratios_and_writes_json(tmp_path, capsys):
    path = tmp_path / 'train.json'
    arguments = ['condensenetv2_110_cifar', '--input-size', '3', '16', '16', '--batch', '2', '--rounds', '1']
    assert main([*arguments, '--train', '--warmup', '0', '--markdown', '--quiet', '--json', str(path)]) == 0
    assert 'times faster than masked' in capsys.readouterr().out
    written = json.loads(path.read_text())
    assert {row['form'] for row in written['training']} == set(TRAINING_FORMS) and 'cores' in written['machine']


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        (['--peers', 'ShuffleNetV2', '--roofline'], '--peers, --roofline'),
        (['--batch', '1', '16', '--threads', '1', '2'], 'several values of --batch, several values of --threads'),
    ],
)
def test_options_of_inference_are_refused(options, named, capsys):
    assert main(['--train', *options]) == 2
    assert f'does not take {named}; leave that out, or --train' in capsys.readouterr().err
