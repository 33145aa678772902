"""Where in a file the weights are: containers, prefixes, raw and averaged ones."""

import copy

import pytest
import timm
import torch

import cnv2_plugin.toolkits  # noqa: F401  (registers the models)
from cnv2_plugin.checkpoints import CheckpointError, find_state_dict, find_weights, load_checkpoint, save_checkpoint
from cnv2_plugin.cli import main

ARCH = dict(layers=[1, 1], growth=[8, 8], groups_1x1=4, groups_3x3=4, groups_sfr=4, condense_factor=4, sparse_factor=2)


def small(seed=0):
    torch.manual_seed(seed)
    return timm.create_model('condensenetv2', arch=ARCH, num_classes=3)


@pytest.fixture(scope='module')
def raw():
    return small(0).state_dict()


@pytest.fixture(scope='module')
def averaged():
    return small(1).state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def behind(prefix, state):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize('prefix', ['model.', 'module.', 'net.', 'backbone.', '_orig_mod.', 'model.module.', 'my.own.'])
@pytest.mark.parametrize('container', ['', 'state_dict', 'model_state_dict', 'net', 'weights', 'run.model.state_dict'])
def test_containers_and_prefixes(prefix, container, raw):
    content = {**behind(prefix, raw), 'criterion.weight': torch.ones(3), 'n_averaged': torch.tensor(5)}
    for name in reversed(container.split('.') if container else []):
        content = {name: content, 'epoch': 3, 'optimizer': {'state': {0: {'exp_avg': torch.zeros(3)}}}}
    found = find_weights(content)
    assert same(found.state_dict, raw) and found.prefix == prefix and found.key == container
    assert prefix in found.said


def test_our_own_files_say_nothing(raw):
    assert find_weights({'state_dict': raw, 'meta': {}}).said == '' == find_weights(raw).said


def test_wrappers_inside_the_names_go(raw):
    wrapped = {key.replace('stages.0.', 'stages.0._orig_mod.'): value for key, value in raw.items()}
    assert same(find_state_dict(wrapped), raw)


AVERAGED = [
    'state_dict_ema',
    'ema_state_dict',
    'model_ema',
    'ema',
    'averaged',
    'averaged_model',
    'swa_model',
    'ema.module',
]


@pytest.mark.parametrize('name', AVERAGED)
@pytest.mark.parametrize('plain', ['state_dict', 'model', 'net'])
def test_averaged_weights_are_taken_and_said(name, plain, raw, averaged):
    content = {plain: raw, name.split('.')[0]: {'module': averaged} if '.' in name else averaged, 'ema_decay': 0.9}
    found = find_weights(content)
    assert same(found.state_dict, averaged) and found.averaged
    assert f'`{name}`' in found.said and '--no-ema' in found.said
    found = find_weights(content, use_ema=False)
    assert same(found.state_dict, raw) and not found.averaged and 'raw' in found.said and plain in found.said


def test_averages_in_the_forms_of_torch_mmengine_and_lightning(raw, averaged):
    torchs = {'n_averaged': torch.tensor(7), **behind('module.', averaged)}
    assert same(find_state_dict({'model': raw, 'ema': torchs}), averaged)
    assert same(find_state_dict({'model': raw, 'ema': torchs}, use_ema=False), raw)
    mmengines = {'state_dict': averaged, 'ema_state_dict': {'steps': torch.tensor(7), **behind('module.', raw)}}
    assert same(find_state_dict(mmengines), averaged) and same(find_state_dict(mmengines, use_ema=False), raw)
    lightnings = {'state_dict': behind('model.', averaged), 'current_model_state': behind('model.', raw)}
    assert same(find_state_dict(lightnings), averaged) and same(find_state_dict(lightnings, use_ema=False), raw)
    inside = {'state_dict': {**behind('model.', raw), **behind('ema_model.module.', averaged)}}
    assert same(find_state_dict(inside), averaged) and same(find_state_dict(inside, use_ema=False), raw)


def test_averages_of_parameters_alone_take_the_buffers_of_the_raw_weights(raw, averaged):
    parameters = {key: averaged[key] for key, _ in small().named_parameters()}
    found = find_weights({'state_dict': raw, 'ema': {'shadow': parameters, 'decay': torch.tensor(0.9)}})
    assert found.state_dict.keys() == raw.keys() and 'buffers' in found.said
    assert all(torch.equal(found.state_dict[key], value) for key, value in parameters.items())


def test_averages_without_names_are_not_passed_over(raw):
    content = {'model': raw, 'ema': {'shadow_params': list(small(1).parameters()), 'decay': 0.9}}
    with pytest.raises(CheckpointError, match='ema.*--no-ema'):
        find_state_dict(content)
    assert same(find_state_dict(content, use_ema=False), raw)


def test_a_second_set_of_the_same_shapes_is_asked_about(raw, averaged):
    content = {'state_dict': raw, 'teacher': {'weights': averaged}}
    with pytest.raises(CheckpointError, match=r'state_dict.*teacher\.weights.*--key'):
        find_state_dict(content)
    assert same(find_state_dict(content, key='teacher'), averaged)
    assert same(find_state_dict(content, key='state_dict'), raw)
    assert same(find_state_dict({'state_dict': raw, 'best': copy.deepcopy(raw)}), raw)
    flat = {**behind('student.', raw), **behind('teacher.', averaged)}
    with pytest.raises(CheckpointError, match=r'student\..*teacher\..*--prefix'):
        find_state_dict(flat)
    assert same(find_state_dict(flat, prefix='teacher'), averaged)
    for wrong in (dict(key='nowhere'), dict(prefix='nowhere')):
        with pytest.raises(CheckpointError, match='nowhere'):
            find_state_dict(flat, **wrong)


@pytest.mark.parametrize('name', ['resnet18', 'condensenetv2'])
def test_known_names_find_foreign_models_too(name):
    options = dict(arch=ARCH) if name == 'condensenetv2' else {}
    state = timm.create_model(name, num_classes=3, **options).state_dict()
    content = {'state_dict': {**behind('learner.encoder.', state), 'loss.weight': torch.ones(3)}}
    assert same(find_weights(content, known=state.keys()).state_dict, state)


def test_commands_say_what_they_took(tmp_path, raw, averaged, capsys):
    path, out = tmp_path / 'x.pth', tmp_path / 'out.pth'
    torch.save({'model': behind('module.', raw), 'ema': behind('module.', averaged)}, path)
    command = ['convert-keys', str(path), str(out), '--to', 'timm']
    for options, words, expected in (
        ([], ('averaged', '`ema`', '--no-ema'), averaged),
        (['--no-ema'], ('raw', '`model`'), raw),
    ):
        assert main([*command, *options]) == 0
        error = capsys.readouterr().err
        assert all(word in error for word in words) and error.count('\n') == 1
        assert same(load_checkpoint(out)['state_dict'], expected)
    save_checkpoint({**behind('a.', raw), **behind('b.', averaged)}, path)
    assert main(command) == 1 and '--prefix' in capsys.readouterr().err
    assert main([*command, '--prefix', 'b.']) == 0
    assert same(load_checkpoint(out)['state_dict'], averaged)


def test_a_file_of_many_names_is_read_or_refused_soon(tmp_path, raw):
    """Time grows with the number of names, not with its square."""
    one, path = torch.zeros(1), tmp_path / 'many.pth'
    with pytest.raises(CheckpointError, match='--prefix'):
        find_weights({f'{i}.backbone.stem.weight': one for i in range(200_000)}, known=raw.keys())
    more = {f'model.more.{i}': one for i in range(20_000)}
    torch.save(dict(behind('model.', raw), **more, log=[{'loss': one} for _ in range(20_000)]), path)
    found = find_weights(load_checkpoint(path), known=raw.keys())
    assert found.prefix == 'model.' and len(found.state_dict) == len(raw) + len(more)
