"""``_base_ = 'cnv2_plugin::...'``: what it means, in configs of users, and where the toolkits look up names."""

import ast
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip('mmpretrain')

import cv2
import numpy
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import HOOKS, MODELS, DefaultScope, Registry
from mmengine.runner import Runner

import cnv2_plugin
from cnv2_plugin import registry
from cnv2_plugin.checkpoints import save_checkpoint
from cnv2_plugin.commands.configs import copy_config
from cnv2_plugin.config_files import config_names, config_path
from cnv2_plugin.deploy import condense
from tests.helpers import finish_pruning

from .stand_ins import CONFIGS, config_paths, with_stand_ins
from .test_every_config import parameters

SMALL = 'fashion_mnist/condensenetv2-small_1xb64-5e_fashion-mnist.py'
DETECTOR = 'mmdet/retinanet_condensenetv2-small_sfrfpn_1xb8-12e_fashion-scenes.py'
IMAGE = numpy.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=numpy.uint8)


def of_user(folder: Path, name: str) -> Path:
    path = folder / 'user.py'
    path.write_text(f"_base_ = 'cnv2_plugin::{name}'\nwork_dir = 'elsewhere'\n")
    return path


def without_scopes(value):
    if isinstance(value, dict):
        return {key: without_scopes(child) for key, child in value.items() if key not in ('_scope_', 'work_dir')}
    return [without_scopes(child) for child in value] if isinstance(value, (list, tuple)) else value


def typed(value):
    """Dicts with a type, the outermost only: those that mmengine gives a scope."""
    if isinstance(value, dict) and 'type' in value:
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for child in value.values() if isinstance(value, dict) else value:
            yield from typed(child)


def found(kind: str, scopes: set) -> set:
    """Classes of that name in any registry of the scopes."""
    roots = [root for root in vars(registry.mmengine_registry).values() if isinstance(root, Registry)]
    registries = [root.children[scope] for root in roots for scope in scopes if scope in root.children]
    return {known for known in (item.get(kind) for item in registries) if known is not None}


def test_names_are_those_of_the_folder():
    assert config_names() == [path.relative_to(CONFIGS).as_posix() for path in config_paths()]


@pytest.mark.parametrize('name', [SMALL, DETECTOR, 'condensenetv2/condensenetv2-c_8xb128-350e_in1k.py'])
@pytest.mark.parametrize('way', ['base', 'copy', 'hub'])
def test_every_way_gives_the_config_of_the_file(name, way, tmp_path):
    cfg = (
        get_config(f'cnv2_plugin::{name}')
        if way == 'hub'
        else Config.fromfile(of_user(tmp_path, name) if way == 'base' else copy_config(name, tmp_path))
    )
    assert without_scopes(cfg.to_dict()) == without_scopes(Config.fromfile(CONFIGS / name).to_dict())


@pytest.mark.parametrize('name', parameters(map(Path, config_names())))
def test_types_of_a_base_are_those_of_its_own_scope(name, tmp_path):
    """With ``_scope_`` from the package as with ``default_scope`` in the package's own folder."""
    cfg = Config.fromfile(of_user(tmp_path, name.as_posix()))
    dicts = [item for item in typed(cfg.to_dict()) if item.get('_scope_') == 'cnv2_plugin']
    assert dicts or name.parent.name == 'deploy'
    for item in dicts:
        assert found(item['type'], {'cnv2_plugin'}) == found(item['type'], {cfg.default_scope}), item


@pytest.mark.parametrize('name', [SMALL, DETECTOR])
def test_a_users_config_trains(name, tmp_path):
    cfg = with_stand_ins(Config.fromfile(of_user(tmp_path, name)), tmp_path)
    runner = Runner.from_cfg(cfg)
    assert 'StagedSparsificationHook' in [type(hook).__name__ for hook in runner.hooks]
    assert type(runner.model).__module__.partition('.')[0] == cfg.default_scope
    assert runner.train_loop.max_epochs == cfg.train_cfg.max_epochs
    runner.optim_wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    losses = runner.model.train_step(next(iter(runner.train_dataloader)), runner.optim_wrapper)
    assert torch.isfinite(losses['loss'])


def test_prefix_and_bare_name_are_one_class():
    with DefaultScope.overwrite_default_scope('mmdet'):
        prefixed = MODELS.build(dict(type='cnv2_plugin.CondenseNetV2'))
        assert type(prefixed) is type(MODELS.build(dict(type='CondenseNetV2')))
    assert registry.HOOKS.get('StagedSparsificationHook') is HOOKS.get('StagedSparsificationHook')
    assert registry.MODELS.get('mmdet.FPN').__module__ == 'mmdet.models.necks.fpn'
    assert registry.MODELS.get('LinearClsHead').__module__.startswith('mmpretrain')


@pytest.mark.slow
@pytest.mark.parametrize('first', ['mmpretrain', 'cnv2_plugin'])
def test_names_are_listed_whichever_is_imported_first(first):
    code = (
        f'import {first}, cnv2_plugin, mmpretrain\n'
        "names = mmpretrain.list_models('*condense*')\n"
        "print(len(names), 'condensenetv2-a_8xb128-350e_in1k' in names, any('faster' in name for name in names))\n"
        'from cnv2_plugin.toolkits import FAILURES\n'
        'print(FAILURES)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    expected = sum('condense' in name and not name.startswith('mm') for name in config_names())
    assert done.stdout == f'{expected} True False\n{{}}\n', done.stderr[-800:]


@pytest.fixture
def deployed(tmp_path):
    """Condensed weights of the deploy config for CIFAR-10."""
    cfg = get_config('cnv2_plugin::condensenetv2/condensenetv2-110_1xb64-300e_cifar10.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = condense(finish_pruning(MODELS.build(cfg.model)))
    save_checkpoint(model.state_dict(), tmp_path / 'deployed.pth')
    return str(tmp_path / 'deployed.pth')


@pytest.mark.filterwarnings('ignore')
def test_mmpretrain_takes_names_and_deployed_checkpoints(deployed, tmp_path):
    import mmpretrain

    mmpretrain.utils.register_all_modules(init_default_scope=True)  # a detector of another test may have left its scope
    name = 'condensenetv2-110_deploy_cifar10'
    assert name in mmpretrain.ImageClassificationInferencer.list_models('condensenetv2-110')
    model = mmpretrain.get_model(name, pretrained=deployed)
    weights = torch.load(deployed)['state_dict']
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    cv2.imwrite(str(tmp_path / 'image.png'), IMAGE)
    scores = [
        mmpretrain.inference_model(model, str(tmp_path / 'image.png'))['pred_scores'],
        mmpretrain.inference_model(name, IMAGE, pretrained=deployed)['pred_scores'],
        mmpretrain.ImageClassificationInferencer(name, pretrained=deployed)(IMAGE)[0]['pred_scores'],
        mmpretrain.ImageClassificationInferencer(str(config_path(name)), pretrained=deployed)(IMAGE)[0]['pred_scores'],
    ]
    assert len(scores[0]) == 10 and all(numpy.allclose(scores[0], other) for other in scores)


@pytest.mark.filterwarnings('ignore')
def test_mmdet_takes_names_and_deployed_checkpoints(tmp_path):
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    cfg = get_config(f'cnv2_plugin::{DETECTOR}')
    model = init_detector(cfg, device='cpu')
    finish_pruning(model)
    save_checkpoint(dict(model.state_dict()), tmp_path / 'trained.pth')
    from cnv2_plugin.cli import main

    out = str(tmp_path / 'deployed.pth')
    assert main(['deploy', f'cnv2_plugin::{DETECTOR}', str(tmp_path / 'trained.pth'), '--out', out]) == 0
    expected = inference_detector(init_detector(str(tmp_path / 'deployed.py'), out, device='cpu'), IMAGE)
    stem = Path(DETECTOR).stem
    for options in (
        dict(model=str(tmp_path / 'deployed.py'), weights=out),
        dict(model=get_config(f'cnv2_plugin::{DETECTOR}'), weights=str(tmp_path / 'trained.pth')),
        dict(model=stem, weights=str(tmp_path / 'trained.pth'), scope='cnv2_plugin'),
    ):
        inferencer = DetInferencer(device='cpu', show_progress=False, **options)
        scores = inferencer(IMAGE)['predictions'][0]['scores']
        assert numpy.allclose(scores, expected.pred_instances.scores.numpy(), atol=1e-4)


@pytest.mark.filterwarnings('ignore')
def test_every_detector_is_found_by_name():
    from mmdet.apis import DetInferencer

    names = DetInferencer.list_models('cnv2_plugin')
    assert {Path(name).stem for name in config_names()} <= set(names)
    inferencer = DetInferencer('faster-rcnn_condensenetv2-a_sfrfpn_1x_coco', device='cpu', scope='cnv2_plugin')
    assert type(inferencer.pipeline.transforms[1]).__module__.startswith('mmdet')


def test_package_paths_need_no_installed_distribution():
    from mmengine.config.utils import MODULE2PACKAGE
    from mmengine.utils import get_installed_path

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert Path(get_installed_path(MODULE2PACKAGE['cnv2_plugin'])) == Path(cnv2_plugin.__file__).parent


def hook_types(cfg):
    return {hook['type'] for hook in cfg.get('custom_hooks') or []}


WITH_HOOKS = [path for path in config_paths() if '\ncustom_hooks = [\n' in path.read_text()]


@pytest.mark.parametrize('path', WITH_HOOKS, ids=lambda path: path.stem)
def test_configs_keep_the_hooks_of_their_base(path):
    """All of them; an empty list, as of deployed networks, is meant so."""
    body = ast.parse(path.read_text()).body
    tree = {ast.unparse(node.targets[0]): node.value for node in body if isinstance(node, ast.Assign)}
    bases = ast.literal_eval(tree.get('_base_') or ast.parse('[]', mode='eval').body)
    kept = hook_types(Config.fromfile(path))
    for base in [bases] if isinstance(bases, str) else bases:
        of_base = get_config(base) if '::' in base else Config.fromfile(path.parent / base)
        assert hook_types(of_base) <= kept, f'{path.name} drops hooks of {base}'
