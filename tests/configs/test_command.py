"""``cnv2 configs``: the list, the copy, and names given to other commands."""

import json
from pathlib import PurePosixPath

import pytest

pytest.importorskip('mmengine')

from mmengine.config import Config

from cnv2_plugin import config_files
from cnv2_plugin.cli import main
from cnv2_plugin.commands.configs import with_package_bases
from cnv2_plugin.config_files import config_names, config_path
from cnv2_plugin.toolkits.openmmlab.runner_config import load_config

from .stand_ins import CONFIGS

SMALL = 'condensenetv2-small_1xb64-5e_fashion-mnist'


def listed(capsys, *pattern):
    assert main(['configs', *pattern, '--json']) == 0
    (table,) = json.loads(capsys.readouterr().out)['tables']
    return {row[0]: row[1:] for row in table['rows']}


def test_the_list_holds_every_config_with_the_figures_of_its_metafile(capsys):
    rows = listed(capsys)
    assert sorted(rows) == config_names()
    assert rows[f'fashion_mnist/{SMALL}.py'] == [0.126, 1.282]
    assert rows['mmdet/faster-rcnn_condensenetv2-a_fpn_1x_coco.py'] == ['-', '-']


@pytest.mark.parametrize(
    ('pattern', 'count'), [('fashion_mnist/', 4), ('cnv2_plugin::fashion_mnist/*', 4), ('condensenetv2-?_8xb*', 6)]
)
def test_patterns(pattern, count, capsys):
    assert len(listed(capsys, pattern)) == count


@pytest.mark.parametrize(
    'name', [SMALL, f'{SMALL}.py', f'fashion_mnist/{SMALL}', f'cnv2_plugin::fashion_mnist/{SMALL}.py']
)
def test_a_copy_is_the_config_with_its_bases_in_the_package(name, tmp_path, capsys):
    assert main(['configs', name, '--copy', str(tmp_path / 'new')]) == 0
    (copy,) = (tmp_path / 'new').iterdir()
    assert copy.name in capsys.readouterr().out
    text, original = copy.read_text(), (CONFIGS / f'fashion_mnist/{SMALL}.py').read_text()
    assert text.startswith(f'# A copy of cnv2_plugin::fashion_mnist/{SMALL}.py')
    assert text.count("'cnv2_plugin::_base_/") == 3 and text.endswith(original[original.index(']') + 1 :])


def test_a_copy_replaces_nothing_unasked(tmp_path, capsys):
    assert main(['configs', SMALL, '--copy', str(tmp_path)]) == 0
    (copy,) = tmp_path.iterdir()
    copy.write_text('mine')
    assert main(['configs', SMALL, '--copy', str(tmp_path)]) == 1
    assert '--overwrite' in capsys.readouterr().err and copy.read_text() == 'mine'
    assert main(['configs', SMALL, '--copy', str(tmp_path), '--overwrite']) == 0
    assert 'model = ' in copy.read_text() and len(list(tmp_path.iterdir())) == 1


def test_bases_of_every_kind_are_named():
    place = PurePosixPath('family/deploy/x.py')
    for given, expected in (
        ("'../y.py'", "'cnv2_plugin::family/y.py'"),
        ("['mmdet::a/b.py', './z.py']", "[\n    'mmdet::a/b.py',\n    'cnv2_plugin::family/deploy/z.py',\n]"),
        ("('../../_base_/c.py',)", "[\n    'cnv2_plugin::_base_/c.py',\n]"),
    ):
        text = with_package_bases(f'a = 1\n_base_ = {given}\nb = 2\n', place)
        assert text == f"a = 1\n_base_ = __import__('cnv2_plugin') and {expected}\nb = 2\n"
    assert with_package_bases('a = 1\n', place) == 'a = 1\n'


@pytest.mark.parametrize(
    ('arguments', 'code', 'message'),
    [
        (['configs', 'condensnetv2-a'], 1, 'did you mean'),
        (['configs', SMALL[:-3], '--copy', 'x'], 1, SMALL),
        (['configs', '--copy', 'x'], 2, 'cnv2 configs NAME --copy DIR'),
        (['configs', '--overwrite'], 2, '--copy DIR'),
        (['train', 'cnv2_plugin::fashion_mnist/nope.py'], 1, 'did you mean'),
        (['train', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'], 1, 'is a config of mmdet'),
        (['test', 'cnv2_plugin::_base_/../../../setup.py', 'setup.cfg'], 1, 'setup.cfg is not a file'),
        (['deploy', 'cnv2_plugin::_base_/../../model-index', 'x.pth', '--out', 'y.pth'], 1, 'has no config'),
    ],
)
def test_failures_are_one_sentence(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1 and len(error) < 400
    assert list(tmp_path.iterdir()) == []


def test_an_installation_without_configs_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(config_files, 'MIM', tmp_path)
    assert main(['configs']) == 1
    assert 'install it again' in capsys.readouterr().err


def test_commands_take_names(tmp_path):
    cfg = load_config(f'cnv2_plugin::fashion_mnist/{SMALL}.py')
    assert cfg.work_dir == f'work_dirs/{SMALL}'
    assert cfg.model == Config.fromfile(CONFIGS / f'fashion_mnist/{SMALL}.py').model


def test_bases_have_paths_too():
    assert (
        config_path('_base_/fashion_mnist_runtime').read_text()
        == (CONFIGS / '_base_/fashion_mnist_runtime.py').read_text()
    )
