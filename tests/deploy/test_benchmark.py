"""The benchmark measures what it says, in turn, and refuses what it does not know."""

import json
import math

import pytest
import timm
import torch
from torch import nn

import cnv2_plugin  # noqa: F401
from cnv2_plugin.benchmark import Timing, benchmark, count_mult_adds, exponent, interleave, random_finished
from cnv2_plugin.benchmark.forms import FORMS
from cnv2_plugin.benchmark.peers import PEERS, nearest_peers
from cnv2_plugin.benchmark.runtimes import peak_memory
from cnv2_plugin.cli import main
from cnv2_plugin.deploy import export_onnx
from tests.helpers import finish_pruning, randomize_norms, relative_difference

TINY = dict(layers=(1, 2), growth=(8, 16), groups_1x1=4, groups_3x3=4, groups_sfr=2, condense_factor=4, sparse_factor=2)


def tiny_model():
    return finish_pruning(randomize_norms(timm.create_model('condensenetv2_a', arch=TINY, num_classes=7))).eval()


@pytest.mark.parametrize('form', sorted(set(FORMS) - {'native'}))  # native: tests/kernels
def test_every_form_computes_the_same(form):
    model, x = tiny_model().double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        assert relative_difference(FORMS[form](model, (3, 32, 32), 'onnxruntime')(x), model(x)) < 1e-9
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_no_runner_and_two_that_take_turns():
    calls = []
    assert interleave({}, 3) == {}
    interleave({'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')}, 4, warmup=0)
    assert ''.join(calls) in ('abababab', 'babababa')


def test_rounds_are_interleaved():
    calls = []
    runners = {name: (lambda name=name: calls.append(name)) for name in 'abc'}
    timings = interleave(runners, rounds=60, warmup=1)
    assert calls[:3] == ['a', 'b', 'c'] and len(calls) == 3 + 60 * 3
    measured = calls[3:]
    assert all(set(measured[i : i + 3]) == set('abc') for i in range(0, len(measured), 3))
    followers = {first + second for first, second in zip(measured, measured[1:])}
    assert followers == {'ab', 'ac', 'ba', 'bc', 'ca', 'cb'}, 'a runner follows itself, or always the same one'
    assert all(t.rounds == 60 and 0 <= t.min <= t.median <= t.max for t in timings.values())


def test_a_call_that_is_not_measured_before_each_that_is():
    calls = []
    ticks = iter(range(100))

    def clock():
        calls.append('|')
        return next(ticks)

    runners = {name: (lambda name=name: calls.append(name)) for name in 'ab'}
    timings = interleave(runners, rounds=2, warmup=0, clock=clock, warmup_each_round=1)
    assert ''.join(calls) in ('a|a|b|b|' * 2, 'b|b|a|a|' * 2)
    assert all(t.min == t.max == 1000 for t in timings.values())


def test_timing_summarises_milliseconds():
    assert Timing.of([0.003, 0.001, 0.002]) == Timing(1.0, 2.0, 3.0, 3)


@pytest.mark.slow
@pytest.mark.needs('onnx', 'onnxruntime')
def test_every_combination_is_measured():
    measured = benchmark({'tiny': tiny_model()}, input_size=(3, 32, 32), batch=2, rounds=2, warmup=1)
    assert {(m.form, m.runtime) for m in measured} == {
        (form, runtime) for form in ('training', 'condensed') for runtime in ('eager', 'onnxruntime')
    }
    assert all(m.batch == 2 and m.threads == 1 and m.timing.rounds == 2 and m.size > 0 for m in measured)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(forms=['dense']), 'form dense: choose from'),
        (dict(runtimes=[]), 'runtime list is empty: choose from'),
        (dict(batch=0), 'batch is 0'),
        (dict(rounds=0), 'rounds is 0'),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        benchmark({}, **options)


def test_threads_and_processors_are_restored():
    before = torch.get_num_threads()
    benchmark({'tiny': tiny_model()}, runtimes=['eager'], input_size=(3, 32, 32), rounds=1, warmup=0)
    assert torch.get_num_threads() == before


def test_random_finished_is_reproducible_and_finished():
    a, b = (random_finished(timm.create_model('condensenetv2_a', arch=TINY)) for _ in range(2))
    assert all(layer.is_finished() for layer in a.sparse_layers())
    assert torch.equal(a.norm[0].running_mean, b.norm[0].running_mean)


@pytest.mark.slow
@pytest.mark.needs('matplotlib')
def test_command_prints_a_table_and_writes_json(tmp_path, capsys):
    path = tmp_path / 'figures.json'
    forms = '--forms condensed optimised --runtimes eager --peers ShuffleNetV2'
    options = '--input-size 3 32 32 --rounds 1 --warmup 0 --quiet --markdown --roofline'
    files = ['--json', str(path), '--png', str(tmp_path / 'x.png')]
    assert main(['benchmark', 'condensenetv2_110_cifar', *forms.split(), *options.split(), *files]) == 0
    printed = capsys.readouterr().out
    assert '| condensenetv2_110_cifar | condensed | eager |' in printed
    assert '| condensenetv2_110_cifar | eager | shufflenet_v2_x' in printed and (tmp_path / 'x.png').stat().st_size
    content = json.loads(path.read_text())
    assert torch.__version__.startswith(content['machine']['versions']['torch'])
    assert len(content['measurements']) == 3 and content['measurements'][0]['timing']['rounds'] == 1
    assert {m['form'] for m in content['measurements']} == {'condensed', 'lowered', 'as published'}
    assert 0 < content['roofline']['limits']['condensenetv2_110_cifar'] < math.inf


def test_counting_multiply_adds():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(288, 5))
    assert count_mult_adds(model, (3, 16, 16)) == 8 * 64 * 27 + 8 * 36 * 18 + 288 * 5


def test_nearest_peers():
    (name,) = nearest_peers(145_000_000, families=('ShuffleNetV2',))
    assert name == 'shufflenet_v2_x1_0'
    with pytest.raises(ValueError, match='there are no peers AlexNet; choose from ShuffleNetV2'):
        nearest_peers(1, families=('AlexNet',))
    with pytest.raises(ValueError, match='GhostNetV2 does not take images of 3x32x32 .*leave GhostNetV2 out'):
        nearest_peers(1, (3, 32, 32), families=('GhostNetV2',))


@pytest.mark.slow
def test_every_family_has_a_nearest_peer():
    peers = nearest_peers(145_000_000)
    assert [next(family for family, names in PEERS.items() if name in names) for name in peers] == list(PEERS)
    for name, model in peers.items():
        assert 70_000_000 < count_mult_adds(model, (3, 224, 224)) < 450_000_000, name
        assert not model.training


def test_exponent():
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    with pytest.raises(ValueError, match='at least two sizes'):
        exponent([1], [1])


@pytest.mark.slow
@pytest.mark.needs('onnx', 'onnxruntime')
def test_peak_memory_grows_with_the_work(tmp_path):
    peaks = []
    for size in (8, 512):
        path = tmp_path / f'{size}.onnx'
        export_onnx(nn.Conv2d(3, 64, 1).eval(), path, (3, size, size), batch=1, optimize=False)
        peaks.append(peak_memory(path, (1, 3, size, size)))
    assert peaks[1] - peaks[0] > 64 * 512 * 512 * 4 / 2


def test_command_tells_of_an_unknown_form(capsys):
    assert main(['benchmark', 'condensenetv2_110_cifar', '--forms', 'dense', '--quiet']) == 2
    assert '--forms has dense; choose from' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.needs('kernels', 'onnx', 'onnxruntime')
def test_a_native_network_whose_outputs_hardly_vary_is_measured(capsys):
    command = [
        'benchmark',
        'condensenetv2_a',
        '--forms',
        'native',
        '--runtimes',
        'onnxruntime',
        '--rounds',
        '1',
        '--json',
    ]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)
