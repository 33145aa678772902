"""The table of light detectors, at one detector and few rounds, written into a page between its marks."""

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('onnxruntime')

from tools.research import light_detectors
from tools.research.tables import replace_table


def test_detectors_stand_beside_those_of_mmdetection_at_both_sizes():
    found = light_detectors.detectors()
    ours = [config for config, _ in found if not config.startswith('mmdet::')]
    assert len(ours) == len(set(ours)) == 9 and len(found) == 17
    assert {size for config, size in found if config in light_detectors.PEERS} == {320, 416}


def test_a_page_without_marks_and_words_that_fit_nothing_are_told(tmp_path, capsys):
    (tmp_path / 'page.md').write_text('# Page\n')
    with pytest.raises(ValueError, match='page.md'):
        replace_table('table\n', tmp_path / 'page.md', 'light')
    assert light_detectors.main(['--only', 'nothing', '--print']) == 1
    assert '--only' in capsys.readouterr().err


@pytest.mark.slow
def test_the_table_replaces_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr(light_detectors, 'SIZES', (320,))
    page = tmp_path / 'page.md'
    before, after = '# Page\n<!-- light detectors: begin -->\n', '<!-- light detectors: end -->\nend\n'
    page.write_text(f'{before}old\n{after}')
    command = ['--only', 'a_pafpn-pruned', 'yolox_nano', '--rounds', '2', '--readme', str(page)]
    assert light_detectors.main(command) == 0
    text = page.read_text()
    assert 'old' not in text and text.startswith(before) and text.endswith(after)
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if '_coco' in line]
    assert [row[0] for row in rows] == [
        'rtmdet-light_condensenetv2-a_pafpn-pruned_8xb32-300e_coco-320', 'yolox_nano_8xb8-300e_coco',
    ]  # fmt: skip
    assert all(float(cell.replace(',', '')) > 0 for row in rows for cell in row[2:5])
    assert rows[0][3] == '131.4' and 'Random weights' in text
