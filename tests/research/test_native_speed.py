"""Native files are timed beside another checkout's."""

import pytest

from tests.docs.blocks import ROOT

pytest.importorskip('timm')
pytest.importorskip('onnxruntime')

from tools.research import native_speed  # noqa: E402


@pytest.mark.slow
@pytest.mark.needs('kernels')
def test_one_row_a_network(tmp_path, monkeypatch, capsys):
    arguments = ['condensenetv2_a', '--older', str(ROOT), '--rounds', '1', '--out', str(tmp_path)]
    monkeypatch.setattr('sys.argv', ['native_speed.py', *arguments])
    native_speed.main()
    header, _, row = (
        line.strip('|').split('|') for line in capsys.readouterr().out.splitlines() if line.startswith('|')
    )
    assert len(header) == len(row) == 8 and row[0].strip() == 'condensenetv2_a'
    assert all(float(cell) > 0 for cell in row[1:])
