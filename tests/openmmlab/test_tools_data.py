"""The data that the tools lay and make, and a detector deployed from its config."""

import json
import struct
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import cv2
import numpy
import onnxruntime
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope

from cnv2_plugin.cli import main
from tests.helpers import finish_pruning, randomize_norms

ROOT = Path(__file__).parents[2]
SCENES = ROOT / 'configs/mmdet/retinanet_condensenetv2-small_sfrfpn_1xb8-12e_fashion-scenes.py'


def load_tool(name: str):
    spec = spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp('digits')
    assert load_tool('prepare_fashion_mnist').main([str(folder), '--digits']) == 0
    return folder


@pytest.fixture(scope='module')
def scenes(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes')
    make_scenes(folder, digits)
    return folder


def make_scenes(folder, source, seed=0):
    command = [str(folder), '--source', str(source), '--train', '6', '--val', '4', '--seed', str(seed)]
    assert load_tool('make_scenes').main(command) == 0


def test_digits_are_read_by_the_toolkits_own_class(digits):
    for test_mode, count in ((False, 1437), (True, 360)):
        options = dict(type='FashionMNIST', data_root=str(digits), download=False, test_mode=test_mode, pipeline=[])
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            dataset = DATASETS.build(options)
        assert len(dataset) == count and dataset[0]['img'].shape == (28, 28)
        assert {int(dataset[i]['gt_label']) for i in range(60)} == set(range(10))


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='--digits'):
        load_tool('prepare_fashion_mnist').unpack(tmp_path, tmp_path)


def test_debian_files_are_unpacked_and_others_refused(tmp_path):
    tool = load_tool('prepare_fashion_mnist')
    if not tool.DEBIAN.is_dir():
        pytest.skip('the package dataset-fashion-mnist is not installed')
    tool.unpack(tool.DEBIAN, tmp_path)
    header = (tmp_path / 't10k-images-idx3-ubyte').read_bytes()[:16]
    assert struct.unpack('>IIII', header) == (0x803, 10000, 28, 28)
    (tmp_path / 'wrong').mkdir()
    for name in tool.FILES:
        (tmp_path / 'wrong' / f'{name}.gz').write_bytes((tool.DEBIAN / 't10k-labels-idx1-ubyte.gz').read_bytes())
    with pytest.raises(ValueError, match='is not the file of that name'):
        tool.unpack(tmp_path / 'wrong', tmp_path)


def test_boxes_are_the_extent_of_pasted_pixels():
    tool = load_tool('make_scenes')
    square = numpy.zeros((1, 28, 28), numpy.uint8)
    square[0, 7:21, 7:21] = 255
    rng = numpy.random.default_rng(0)
    for _ in range(20):
        scene, objects = tool.compose({3: square}, 160, rng)
        assert 1 <= len(objects) <= 5 and all(label == 3 for label, _ in objects)
        for _, (x, y, w, h) in objects:
            inside = scene[y : y + h, x : x + w].max(-1)
            assert (inside >= 0.5 * tool.VISIBLE).mean() > 0.95
            assert abs(w - h) <= 1 and 13 <= w <= 32 and 0 <= x <= 160 - w and 0 <= y <= 160 - h


def test_scenes_are_seeded_and_of_several_classes(scenes, digits, tmp_path):
    make_scenes(tmp_path / 'again', digits)
    make_scenes(tmp_path / 'other', digits, seed=1)
    files = sorted(path.relative_to(scenes) for path in scenes.rglob('*') if path.is_file())
    assert len(files) == 12
    assert all((scenes / f).read_bytes() == (tmp_path / 'again' / f).read_bytes() for f in files)
    assert any((scenes / f).read_bytes() != (tmp_path / 'other' / f).read_bytes() for f in files)
    told = json.loads((scenes / 'annotations/train.json').read_text())
    assert len({a['category_id'] for a in told['annotations']}) > 2
    assert cv2.imread(str(scenes / 'train/00000.png')).shape == (160, 160, 3)
    assert all(a['area'] == a['bbox'][2] * a['bbox'][3] for a in told['annotations'])


def test_missing_sources_are_told_in_a_sentence(tmp_path, capsys):
    assert load_tool('make_scenes').main([str(tmp_path / 'a'), '--source', str(tmp_path)]) == 1
    assert load_tool('prepare_fashion_mnist').main([str(tmp_path / 'b'), '--source', str(tmp_path)]) == 1
    assert capsys.readouterr().err.count('\n') == 2


def test_the_config_reads_them(scenes):
    cfg = Config.fromfile(SCENES)
    for name, count in (('train_dataloader', 6), ('val_dataloader', 4)):
        cfg[name].dataset.data_root = str(scenes)
        with DefaultScope.overwrite_default_scope('mmdet'):
            dataset = DATASETS.build(cfg[name].dataset)
        assert len(dataset) == count and dataset[0]['inputs'].shape == (3, 160, 160)
        assert len(dataset[0]['data_samples'].gt_instances) >= 1


@pytest.mark.slow
def test_detector_is_deployed_and_tested_with_equal_metrics(scenes, tmp_path):
    cfg = Config.fromfile(SCENES)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = finish_pruning(randomize_norms(MODELS.build(cfg.model)))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'trained.pth')
    out, onnx = tmp_path / 'x.pth', tmp_path / 'x.onnx'
    command = ['deploy', str(SCENES), str(tmp_path / 'trained.pth'), '--out']
    assert main([*command, str(out), '--onnx', str(onnx), '--features']) == 0
    outputs = onnxruntime.InferenceSession(onnx).run(None, {'input': numpy.zeros((1, 3, 160, 160), numpy.float32)})
    assert [output.shape for output in outputs] == [(1, 48, side, side) for side in (20, 10, 5)]
    metrics = {}
    changes = [f'{name}.dataset.data_root={scenes}' for name in ('val_dataloader', 'test_dataloader')]
    changes += [f'test_evaluator.ann_file={scenes}/annotations/val.json', 'model.test_cfg.score_thr=0.0']
    runs = dict(trained=[str(SCENES), str(tmp_path / 'trained.pth')], deployed=[str(out.with_suffix('.py')), str(out)])
    runs['condensed'] = [*runs['trained'], '--deploy', '--show-dir', str(tmp_path / 'painted')]
    for name, arguments in runs.items():
        metric = tmp_path / f'{name}.json'
        more = ['--out', str(metric), '--work-dir', str(tmp_path / name), '--cfg-options', *changes]
        assert main(['test', *arguments, *more]) == 0
        metrics[name] = json.loads(metric.read_text())
    assert metrics['trained'] == metrics['deployed'] == metrics['condensed']
    assert len(list(tmp_path.rglob('painted/*.png'))) == 4


@pytest.mark.slow
@pytest.mark.parametrize('native', [False, pytest.param(True, marks=pytest.mark.needs('kernels'))])
def test_the_file_of_a_detector_has_the_metrics_of_its_checkpoint(scenes, tmp_path, native, capsys):
    torch.manual_seed(0)
    data = [f'{name}.dataset.data_root={scenes}' for name in ('train_dataloader', 'val_dataloader', 'test_dataloader')]
    data += [f'{name}.ann_file={scenes}/annotations/val.json' for name in ('val_evaluator', 'test_evaluator')]
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = finish_pruning(MODELS.build(Config.fromfile(SCENES).model))
    head = model.bbox_head
    head.retina_cls.bias.data.fill_(0.0)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'trained.pth')
    (tmp_path / 'c.py').write_text(
        f'_base_ = {str(SCENES)!r}\ntest_dataloader = dict(dataset=dict(data_root={str(scenes)!r}))\n'
    )
    checkpoint, onnx = str(tmp_path / 'trained.pth'), str(tmp_path / 'd.onnx')
    assert main(['deploy', str(tmp_path / 'c.py'), checkpoint, '--out', onnx, *['--native'][:native]]) == 0
    assert 'whole detector' in capsys.readouterr().out
    metrics = []
    for file in (checkpoint, onnx):
        out = tmp_path / 'metrics.json'
        more = ['--out', str(out), '--work-dir', str(tmp_path / 'w'), '--cfg-options', *data]
        assert main(['test', str(SCENES), file, *more]) == 0
        metrics.append(json.loads(out.read_text()))
    assert metrics[0].keys() == metrics[1].keys()
    assert all(abs(value - metrics[1][name]) <= 1e-3 for name, value in metrics[0].items())
