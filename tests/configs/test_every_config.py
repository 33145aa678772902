"""Every config loads, builds, trains a step and predicts; deployed ones take the weights of their training form."""

import math
from fnmatch import fnmatch

import pytest
import torch
import yaml

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')

from mmengine.config import Config
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from mmengine.runner import Runner

from cnv2_plugin.analysis import count_cost
from cnv2_plugin.deploy import condense
from cnv2_plugin.layers import GroupSparseConv2d
from tests.helpers import finish_pruning, randomize_norms, relative_difference

from .stand_ins import CONFIGS, COUNT, config_paths, load

FAST = (
    'condensenetv2-a_*-early-*', 'condensenetv2-a_deploy_*', 'condensenet-50_*', 'condensenetv2-110_*_cifar100',
    'sfr-shufflenet-v2-0.5x_16xb64-300e_in1k', 'sfr-shufflenet-v2-0.5x_deploy_*', '*_fashion-mnist',
    '*small_sfrfpn_1xb8-12e-early_*', '*small_fpn_1xb8-12e-unpruned_*', 'faster-rcnn_*-a_sfrfpn_*',
    'yolox-light_*-a_sfrpafpn_*',
)  # fmt: skip


def parameters(paths):
    return [
        pytest.param(path, id=path.stem, marks=() if any(fnmatch(path.stem, p) for p in FAST) else pytest.mark.slow)
        for path in paths
    ]


DEPLOYED = [path for path in config_paths() if path.parent.name == 'deploy']


def sparse_layers(model):
    return [module for module in model.modules() if isinstance(module, GroupSparseConv2d)]


def check_metafile(path, cfg, model):
    """The metafile's figures are those of the model that the config builds."""
    family = CONFIGS / path.relative_to(CONFIGS).parts[0]
    models = yaml.safe_load((family / 'metafile.yml').read_text())['Models']
    told = next(model for model in models if model['Name'] == path.stem).get('Metadata')
    if told:
        cost = count_cost(model, input_size(path))
        pruned, unpruned = (cost.mult_adds_pruned, cost.params_pruned), (cost.mult_adds, cost.params)
        assert (told['FLOPs'], told['Parameters']) == (unpruned if 'unpruned' in path.stem else pruned)


def input_size(path):
    sizes = dict(in1k=(3, 224, 224), cifar=(3, 32, 32), mnist=(1, 40, 40), scenes=(3, 160, 160))
    return next(size for name, size in sizes.items() if name in path.stem)


@pytest.mark.parametrize('path', parameters(config_paths()))
def test_config_builds_trains_a_step_and_predicts(path, tmp_path):
    cfg = load(path, tmp_path)
    runner = Runner.from_cfg(cfg)
    hooks = [type(hook).__name__ for hook in runner.hooks]
    layers = sparse_layers(runner.model)
    prunes = any(not layer.deploy for layer in layers) and 'unpruned' not in path.stem
    assert ('StagedSparsificationHook' in hooks) == prunes
    assert path.parent.name != 'deploy' or (layers and all(layer.deploy for layer in layers))
    check_metafile(path, cfg, runner.model)
    assert runner.train_loop.max_epochs == cfg.train_cfg.max_epochs
    runner.optim_wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    runner.build_param_scheduler(cfg.param_scheduler)
    before = {name: value.clone() for name, value in runner.model.named_parameters()}
    losses = runner.model.train_step(next(iter(runner.train_dataloader)), runner.optim_wrapper)
    assert math.isfinite(losses['loss'].item())
    still = [n for n, v in runner.model.named_parameters() if v.requires_grad and torch.equal(v, before[n])]
    assert len(still) < len(before) / 2
    evaluator = runner.build_evaluator(cfg.val_evaluator)
    loader = runner.build_dataloader(cfg.val_dataloader)
    evaluator.dataset_meta = loader.dataset.metainfo
    runner.model.eval()
    for batch in loader:
        with torch.no_grad():
            samples = runner.model.val_step(batch)
        evaluator.process(data_samples=samples, data_batch=batch)
    assert len(samples) == 2
    metrics = evaluator.evaluate(COUNT)
    assert 'accuracy/top1' in metrics or cfg.default_scope == 'mmdet'


@pytest.mark.parametrize('path', parameters(DEPLOYED))
def test_deploy_config_takes_condensed_weights_of_its_training_config(path):
    cfg = Config.fromfile(path)
    (parent,) = [p for p in (CONFIGS / path.parents[1].name).glob('*.py') if _is_base(p, path)]
    training = Config.fromfile(parent)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = finish_pruning(randomize_norms(MODELS.build(training.model))).eval()
        deployed = MODELS.build(cfg.model).eval()
    deployed.load_state_dict(condense(model).state_dict())
    x = torch.randn(1, 3, *([32, 32] if 'cifar' in path.stem else [64, 64]))
    with torch.no_grad():
        assert relative_difference(deployed(x), model(x)) < 1e-5


def _is_base(candidate, path):
    return f"'../{candidate.name}'" in path.read_text()


@pytest.mark.parametrize('path', [p for p in config_paths() if 'early' in p.stem], ids=lambda path: path.stem)
def test_our_recipe_rewinds_the_rate_after_the_last_stage(path):
    cfg = Config.fromfile(path)
    epochs, epoch_length = cfg.train_cfg.max_epochs, 10
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    iterations = 1251 if 'in1k' in path.stem else 50
    for one in cfg.param_scheduler:
        if not one.by_epoch:
            one.end = one.end * epoch_length // iterations
    schedulers = [
        PARAM_SCHEDULERS.build(one, default_args=dict(optimizer=optimizer, epoch_length=epoch_length))
        for one in cfg.param_scheduler
    ]
    rates = []
    for _ in range(epochs * epoch_length):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    (hook,) = [one for one in cfg.custom_hooks if one.type == 'StagedSparsificationHook']
    last_stage = math.ceil(hook.sparse_fraction * epochs) * epoch_length
    peak = cfg.optim_wrapper.optimizer.lr
    assert rates[last_stage] == pytest.approx(peak) == max(rates)
    assert 0.6 * peak < rates[last_stage - 1] < 0.9 * peak
    assert rates[-1] < 0.001 * peak
