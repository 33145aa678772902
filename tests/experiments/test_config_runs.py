"""A comparison of OpenMMLab configs at its smallest: trained, tested twice, tabulated, and never done again."""

from pathlib import Path

import pytest

from cnv2_plugin.experiments import compare, config_runs

pytest.importorskip('mmpretrain')
pytest.importorskip('sklearn')

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_configs_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    prepare = pytest.importorskip('prepare_fashion_mnist')
    assert prepare.main([str(tmp_path / 'data'), '--digits']) == 0
    capsys.readouterr()
    parts = ('train', 'val', 'test')
    options = [
        'train_cfg.max_epochs=2', 'param_scheduler.T_max=2', 'param_scheduler.end=2',
        *(f'{part}_dataloader.dataset.indices=192' for part in parts),
        *(f'{part}_dataloader.dataset.data_root={tmp_path / "data"}' for part in parts),
    ]  # fmt: skip
    arguments = [
        str(ROOT / 'configs/fashion_mnist/sfr-shufflenetv2-small_1xb64-5e_fashion-mnist.py'), '--seeds', '0',
        '--input', '1', '40', '40', '--work-dirs', str(tmp_path / 'work'), '--cfg-options', *options,
    ]  # fmt: skip
    assert compare.main(arguments) == 0
    table = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in table[-1].strip('|').split('|')]
    assert cells[0].startswith('sfr-shufflenetv2-small') and cells[4] == cells[5]
    assert (tmp_path / 'work/results').is_dir()

    monkeypatch.setattr(config_runs, '_call', None)
    assert compare.main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == table
    assert compare.main([*arguments, 'optim_wrapper.optimizer.lr=0.2']) == 1
    assert 'other settings' in capsys.readouterr().err
