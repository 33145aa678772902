"""A comparison of OpenMMLab configs at its smallest: trained, tested twice, tabulated, and never done again."""

from pathlib import Path

import pytest

from tools.research import config_runs
from tools.research import runs_table as compare

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
    assert (tmp_path / 'work/results.csv').is_file()

    monkeypatch.setattr(config_runs, '_call', None)
    assert compare.main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == table
    assert compare.main([*arguments, 'optim_wrapper.optimizer.lr=0.2']) == 1
    assert 'other settings' in capsys.readouterr().err


@pytest.mark.slow
def test_detectors_pruned_early_and_never_from_end_to_end(tmp_path, capsys, monkeypatch):
    pytest.importorskip('mmdet')
    monkeypatch.syspath_prepend(ROOT / 'tools')
    prepare, scenes = pytest.importorskip('prepare_fashion_mnist'), pytest.importorskip('make_scenes')
    assert prepare.main([str(tmp_path / 'data'), '--digits']) == 0
    data = tmp_path / 'scenes'
    assert scenes.main([str(data), '--source', str(tmp_path / 'data'), '--train', '16', '--val', '4']) == 0
    capsys.readouterr()
    options = [
        'train_cfg.max_epochs=4', 'train_cfg.val_interval=4', 'train_dataloader.batch_size=2',
        *(f'{part}_dataloader.dataset.data_root={data}/' for part in ('train', 'val', 'test')),
        *(f'{part}_evaluator.ann_file={data}/annotations/val.json' for part in ('val', 'test')),
    ]  # fmt: skip
    base = ROOT / 'configs/mmdet/retinanet_condensenetv2-small_sfrfpn_1xb8-12e-early_fashion-scenes.py'
    arguments = [
        str(base), str(base).replace('early', 'unpruned'), '--seeds', '0', '--input', '3', '160', '160',
        '--metrics', 'coco/bbox_mAP', '--work-dirs', str(tmp_path / 'work'), '--cfg-options', *options,
    ]  # fmt: skip
    assert compare.main(arguments) == 0
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert ['early' in row[0] for row in rows] == [True, False]
    assert rows[0][4] == rows[0][5] != '' and rows[1][4] != '' and rows[1][5] == rows[1][6] == ''
    assert abs(float(rows[0][6]) - float(rows[0][5])) <= 1e-3
    assert float(rows[0][1]) < float(rows[1][1])


def test_layers_that_surgery_adds_are_counted_pruned():
    pytest.importorskip('mmdet')
    name = 'rtmdet-light_condensenetv2-small_pafpn{}_1xb8-12e-early_fashion-scenes.py'
    plain, pruned = (
        config_runs.ConfigRun(ROOT / 'configs/mmdet' / name.format(neck)).cost((3, 160, 160))
        for neck in ('', '-pruned')
    )
    assert pruned['mult_adds'] < plain['mult_adds'] and pruned['params'] < plain['params']
    assert pruned['params_unpruned'] == plain['params_unpruned']


@pytest.mark.slow
def test_what_is_never_pruned_has_no_condensed_form(tmp_path, capsys, monkeypatch):
    pytest.importorskip('mmdet')
    base = ROOT / 'configs/mmdet/retinanet_condensenetv2-small_fpn_1xb8-12e_fashion-scenes.py'
    never = base.with_name(base.name.replace('12e', '12e-unpruned'))
    costs = [config_runs.ConfigRun(path).cost((3, 160, 160)) for path in (base, never)]
    renamed = config_runs.ConfigRun(base, ('custom_hooks.0.type=mmengine.StagedSparsificationHook',))
    assert renamed.cost((3, 160, 160)) == costs[0]
    assert costs[0]['mult_adds'] < costs[1]['mult_adds'] and costs[1]['params'] == costs[0]['params_unpruned']

    def call(command, *arguments, options=()):
        if command == 'train':
            folder = Path(arguments[arguments.index('--work-dir') + 1])
            (folder / 'last_checkpoint').write_text('epoch_12.pth')
        elif command == 'test':
            seed = int(options[0].removeprefix('randomness.seed='))
            Path(arguments[arguments.index('--out') + 1]).write_text(f'{{"mAP": {0.5 + seed / 100}}}')

    monkeypatch.setattr(config_runs, '_call', call)
    arguments = [str(base), str(never), '--input', '3', '160', '160', '--metrics', 'mAP', '--work-dirs', str(tmp_path)]
    page = tmp_path / 'page.md'
    page.write_text('<!-- scenes: begin -->\nold\n<!-- scenes: end -->\n')
    assert compare.main([*arguments, '--page', str(page), 'scenes']) == 0
    table = capsys.readouterr().out
    assert page.read_text() == f'<!-- scenes: begin -->\n\n{table}\n<!-- scenes: end -->\n'
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()[2:]]
    both = '0.5100 ± 0.010 (0.5000 / 0.5100 / 0.5200)'
    assert [row[4:7] for row in rows] == [[both, both, both], [both, '', '']]
