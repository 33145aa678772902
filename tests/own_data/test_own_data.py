"""The configs that take a user's folder: what they read, what they leave out, what they refuse."""

import json
from glob import glob
from pathlib import Path

import pytest

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')
pytest.importorskip('sklearn')

from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from cnv2_plugin.cli import main
from cnv2_plugin.commands._own_data import fit_to_own_data
from cnv2_plugin.serving import Model
from cnv2_plugin.toolkits.openmmlab.runner_config import load_config
from tests.errors.cases import check_sentence

from .folders import CLASSES, class_folders, coco, digit_images

CONFIGS = Path(__file__).parents[2] / 'configs/own_data'
(CLASSIFIER,) = CONFIGS.glob('classifier_*.py')
(DETECTOR,) = CONFIGS.glob('detector_*.py')


def load(config, root, work_dir, *options):
    cfg = load_config(str(config), str(work_dir), options=[f'data_root={root}', *options] if root else options)
    fit_to_own_data(cfg)
    return cfg


def dataset(cfg, part):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build(cfg[f'{part}_dataloader'].dataset)


def refusal(config, root, tmp_path):
    with pytest.raises(ValueError) as caught:
        load(config, root, tmp_path / 'work')
    assert str(root) in str(caught.value)
    return str(caught.value)


def test_classes_come_from_the_folders(tmp_path, capsys):
    cfg = load(CLASSIFIER, class_folders(tmp_path / 'data'), tmp_path / 'work')
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == 3
    train, val = dataset(cfg, 'train'), dataset(cfg, 'val')
    assert train.CLASSES == val.CLASSES == CLASSES and (len(train), len(val)) == (30, 30)
    for i in (0, 1, 2, 15, 29):
        assert CLASSES[train.get_gt_labels()[i]] == Path(train.get_data_info(i)['img_path']).parent.name
        assert train[i]['inputs'].shape == (3, 224, 224)
    told = capsys.readouterr().err
    assert '3 classes' in told and '30 images' in told
    cfg.dump(tmp_path / 'complete.py')
    again = load(tmp_path / 'complete.py', None, tmp_path / 'elsewhere')
    assert again.train_dataloader.dataset == cfg.train_dataloader.dataset and not (tmp_path / 'elsewhere').exists()


def test_folders_without_parts_are_split_the_same_way_each_time(tmp_path):
    root = class_folders(tmp_path / 'data', count=20, parts=())
    lists = []
    for work in ('first', 'second'):
        load(CLASSIFIER, root, tmp_path / work)
        lists.append([(tmp_path / work / f'own_data/{part}.txt').read_text().splitlines() for part in ('train', 'val')])
    assert lists[0] == lists[1]
    train, val = lists[0]
    assert len(set(train) | set(val)) == len(train) + len(val) == 60 and len(val) in range(4, 25)


def test_unreadable_images_are_left_out_by_name(tmp_path, capsys):
    root = class_folders(tmp_path / 'data')
    whole = (root / 'train/one/image 0.png').read_bytes()
    (root / 'train/one/truncated.png').write_bytes(whole[: len(whole) // 2])
    (root / 'train/zero/text.jpg').write_text('no image')
    (root / 'train/zero/notes.txt').write_text('not even called one')
    cfg = load(CLASSIFIER, root, tmp_path / 'work')
    assert len(dataset(cfg, 'train')) == 30
    left_out = (tmp_path / 'work/own_data/left_out.txt').read_text()
    assert 'truncated.png' in left_out and 'text.jpg' in left_out and 'notes' not in left_out
    assert '2 left out' in capsys.readouterr().err


def test_turned_images_are_read_as_they_are_displayed(tmp_path):
    root = class_folders(tmp_path / 'data')
    exif = Image.Exif()
    exif[0x0112] = 6
    digit_images('one', 1)[0].convert('RGB').resize((60, 20)).save(root / 'val/one/a.jpg', exif=exif)
    cfg = load(CLASSIFIER, root, tmp_path / 'work')
    val = dataset(cfg, 'val')
    (info,) = [info for info in map(val.get_data_info, range(len(val))) if info['img_path'].endswith('a.jpg')]
    assert val.pipeline.transforms[0](info)['img'].shape == (60, 20, 3)


def test_a_batch_is_no_larger_than_the_set(tmp_path):
    cfg = load(CLASSIFIER, class_folders(tmp_path / 'data', count=1), tmp_path / 'work')
    assert cfg.train_dataloader.batch_size == 3 and cfg.train_dataloader.drop_last
    assert not cfg.val_dataloader.drop_last


def test_no_folder_and_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match='data_root'):
        load(CLASSIFIER, None, tmp_path / 'work')
    assert 'not a folder' in refusal(CLASSIFIER, tmp_path / 'missing', tmp_path)
    (tmp_path / 'empty').mkdir()
    assert '0 class folders' in refusal(CLASSIFIER, tmp_path / 'empty', tmp_path)
    root = class_folders(tmp_path / 'data')
    (root / 'val/eight').mkdir()
    assert 'eight' in refusal(CLASSIFIER, root, tmp_path)
    (root / 'train/eight').mkdir()
    assert 'eight' in refusal(CLASSIFIER, root, tmp_path)
    half = class_folders(tmp_path / 'half', parts=('train',))
    assert 'val' in refusal(CLASSIFIER, half, tmp_path)
    one = tmp_path / 'one_class'
    (one / 'cats').mkdir(parents=True)
    assert 'at least two' in refusal(CLASSIFIER, one, tmp_path)
    assert '0 JSON files' in refusal(DETECTOR, root, tmp_path)
    assert not (tmp_path / 'work').exists()


def test_own_data_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match='class_folders.*coco'):
        load(CLASSIFIER, tmp_path, tmp_path / 'work', 'own_data=voc')


@pytest.mark.parametrize('names', [('train', 'val'), ('all',)])
def test_classes_and_images_come_from_the_json(tmp_path, names):
    cfg = load(DETECTOR, coco(tmp_path / 'data', names=names), tmp_path / 'work')
    assert cfg.model.bbox_head.num_classes == 3
    train, val = dataset(cfg, 'train'), dataset(cfg, 'val')
    assert train.metainfo['classes'] == CLASSES and len(train) + len(val) == 12 * len(names)
    for i in range(len(train)):
        info = train.get_data_info(i)
        number = int(Path(info['img_path']).stem.lstrip('trainl'))
        assert Path(info['img_path']).is_file() and info['instances'][0]['bbox_label'] == number % 3
        assert info['instances'][0]['bbox'] == [8 + number, 10, 40 + number, 42]


def test_images_that_boxes_do_not_fit_are_left_out(tmp_path):
    root = coco(tmp_path / 'data')
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (96, 64)).save(root / 'images/train0.jpg', exif=exif)
    (root / 'images/train1.jpg').unlink()
    cfg = load(DETECTOR, root, tmp_path / 'work')
    assert len(dataset(cfg, 'train')) == 10
    left_out = (tmp_path / 'work/own_data/left_out.txt').read_text()
    assert 'train0.jpg: is 64x96' in left_out and 'train1.jpg: there is no' in left_out


def test_json_that_is_not_coco_is_refused(tmp_path):
    root = coco(tmp_path / 'data')
    read = json.loads((root / 'train.json').read_text())
    read['annotations'][0]['category_id'] = 99
    (root / 'train.json').write_text(json.dumps(read))
    assert '99' in refusal(DETECTOR, root, tmp_path)
    (root / 'train.json').write_text('{"images": []}')
    (root / 'val.json').write_text('[]')
    assert '0 JSON files' in refusal(DETECTOR, root, tmp_path)


def test_a_damaged_json_is_refused_and_not_passed_over(tmp_path):
    root = coco(tmp_path / 'data')
    whole = (root / 'train.json').read_text()
    (root / 'train.json').write_text(whole[: len(whole) // 2])  # without it, val.json alone would be split
    assert 'train.json' in refusal(DETECTOR, root, tmp_path)
    (root / 'train.json').write_text('\ufeff' + whole, encoding='utf-8')
    assert len(dataset(load(DETECTOR, root, tmp_path / 'work'), 'train')) == 12


def test_train_refuses_a_half_copied_folder_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    class_folders(tmp_path / 'half', parts=('train',))
    class_folders(tmp_path / 'unfilled', 2)
    for path in (tmp_path / 'unfilled/train/one').iterdir():
        path.write_bytes(path.read_bytes()[:50])
    (coco(tmp_path / 'boxes') / 'train.json').write_text('{"images": [')
    before = sorted(tmp_path.rglob('*'))
    for config, folder, remedy in (
        (CLASSIFIER, 'empty', 'train/CLASS'), (CLASSIFIER, 'half', 'val/'), (CLASSIFIER, 'unfilled', 'add images'),
        (DETECTOR, 'empty', 'train'), (DETECTOR, 'boxes', 'train.json'), (CLASSIFIER, 'none', 'folder'),
    ):  # fmt: skip
        assert main(['train', str(config), '--work-dir', 'work', '--cfg-options', f'data_root={folder}']) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('cnv2 ')]
        check_sentence(line, folder, '', remedy)
    assert sorted(tmp_path.rglob('*')) == before


SHORT = [
    'train_cfg.max_epochs=3', 'train_cfg.val_interval=3', 'train_dataloader.batch_size=4',
    'default_hooks.checkpoint.interval=3', 'param_scheduler.1.T_max=3', 'param_scheduler.1.end=3',
    'custom_hooks.0.recalibrate=1',
    *(f'{part}_dataloader.{key}' for part in ('train', 'val') for key in ('num_workers=0', 'persistent_workers=False')),
]  # fmt: skip
"""Options of a training of seconds."""


@pytest.mark.slow
def test_the_readme_leads_from_a_folder_to_answers(tmp_path, monkeypatch, capsys):
    page = (CONFIGS.parents[1] / 'README.md').read_text().partition('## Your own images')[2]
    lines = page.split('```')[1].splitlines()[1:]
    class_folders(tmp_path / 'my_images', 12)
    monkeypatch.chdir(tmp_path)
    for line in lines:
        words = line.replace('epoch_60', 'epoch_3').split()
        files = [sorted(glob(word)) if '*' in word else [word] for word in words]
        arguments = [word for found in files for word in found]
        assert arguments[0] == 'cnv2'
        capsys.readouterr()
        assert main([*arguments[1:], *(SHORT if 'train' in arguments else [])]) == 0
    assert any(name in capsys.readouterr().out for name in CLASSES)
    assert len(list((tmp_path / 'answers').glob('*.png'))) > 0


@pytest.mark.slow
def test_a_detector_from_its_folder_to_a_file(tmp_path):
    options = ['--cfg-options', f'data_root={coco(tmp_path / "data", 24)}', *SHORT]
    work = tmp_path / 'work'
    assert main(['train', str(DETECTOR), '--work-dir', str(work), *options]) == 0
    complete, checkpoint = str(work / DETECTOR.name), str(work / 'epoch_3.pth')
    assert main(['test', complete, checkpoint, '--work-dir', str(tmp_path / 'tested')]) == 0
    assert main(['deploy', complete, checkpoint, '--out', str(tmp_path / 'mine.onnx')]) == 0
    answers = Model(tmp_path / 'mine.onnx')(tmp_path / 'data/images/val0.jpg')
    assert answers.boxes.shape[1] == 4
