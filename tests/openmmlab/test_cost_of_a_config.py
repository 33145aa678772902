"""``cnv2 cost CONFIG``: backbone, neck and head apart."""

import json

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

from cnv2_plugin.cli import main

FASHION = 'cnv2_plugin::fashion_mnist/condensenetv2-small_1xb64-5e_fashion-mnist.py'
LIGHT = 'cnv2_plugin::mmdet/rtmdet-light_condensenetv2-a_pafpn-pruned_8xb32-300e_coco-320.py'
TWO_STAGES = 'cnv2_plugin::mmdet/faster-rcnn_condensenetv2-a_sfrfpn_1x_coco.py'


ROWS = {}
"""By the arguments that they were counted with."""


def rows_of(arguments, capsys):
    if tuple(arguments) not in ROWS:
        assert main(['cost', *arguments, '--json']) == 0
        (table,) = json.loads(capsys.readouterr().out)['tables']
        ROWS[tuple(arguments)] = {row[0]: row[1:] for row in table['rows']}
    return ROWS[tuple(arguments)]


@pytest.mark.parametrize('config', [FASHION, LIGHT])
def test_the_parts_of_a_config_sum_up(config, capsys):
    rows = rows_of([config], capsys)
    for column in (0, 1, 3, 4):
        parts = sum(rows[part][column] for part in ('backbone', 'neck', 'head'))
        assert parts == pytest.approx(rows['all'][column], abs=0.02) and rows['backbone'][column] > 0
    assert rows['all'][3] < rows['all'][0] and rows['all'][4] < rows['all'][1]
    if config == FASHION:
        assert rows['all'][3:5] == [125610, 1.28] and rows['neck'][0] == 0


def test_a_pruned_neck_and_head_count_condensed(capsys):
    trained, condensed = rows_of([LIGHT], capsys), rows_of([LIGHT, '--deploy'], capsys)
    for part in ('backbone', 'neck', 'head'):
        assert 0 < condensed[part][1] < trained[part][1]
        assert trained[part][3:5] == condensed[part][:2]


def test_heads_that_work_on_each_box_are_not_counted_for_an_image(capsys):
    rows = rows_of([TWO_STAGES, '--input', '3', '64', '64'], capsys)
    assert 'box' in rows['head'][1] and rows['head'][0] > 1_000_000
    assert rows['both'][1] == pytest.approx(rows['backbone'][1] + rows['neck'][1], abs=0.02)
