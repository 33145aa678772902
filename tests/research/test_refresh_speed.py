"""What the pages about speed show is written by one command."""

from pathlib import Path

import pytest

from tools.research import refresh_speed

TWO = '| a | b |\n| --- | ---: |\n| x | 1 |\n| c | d |\n| --- | ---: |\n| y | 2 |\n| z | 3 |\n'


def test_every_part_has_its_place(capsys):
    for name, part in refresh_speed.PARTS.items():
        page = (Path(refresh_speed.ROOT) / part.page).read_text()
        assert '| new |' in refresh_speed.replaced(page, name, '| new |')
    assert refresh_speed.main(['--list']) == 0
    assert capsys.readouterr().out.count('--front') == 1  # one run for both places
    with pytest.raises(ValueError, match='nowhere'):
        refresh_speed.replaced('# Page\n', 'nowhere', '')


def test_only_the_wanted_tables_go_to_the_page(tmp_path, monkeypatch):
    page = tmp_path / 'page.md'
    page.write_text('before\n\n<!--it-->\nold\n<!--/it-->\n\nafter\n')
    part = refresh_speed.Part('page.md', ('some command',), (1,), '![picture](p.png)\n\n')
    monkeypatch.setattr(refresh_speed, 'ROOT', tmp_path)
    monkeypatch.setattr(refresh_speed, 'PARTS', {'it': part})
    monkeypatch.setattr(refresh_speed, '_run', lambda command: f'some words\n{TWO}')
    assert refresh_speed.main(['it']) == 0
    table = '| c | d |\n| --- | ---: |\n| y | 2 |\n| z | 3 |'
    assert page.read_text() == (f'before\n\n<!--it-->\n\n![picture](p.png)\n\n{table}\n\n<!--/it-->\n\nafter\n')


def test_forms_and_runtimes_stand_side_by_side():
    header = '| model | form | runtime | min ms |\n| --- | ---: | ---: | ---: |\n'
    tables = [
        header + '| a | x | eager | 1 |\n| a | y | eager | 2 |',
        header + '| a | x | eager | 3 |\n| a | y | eager | 4 |',
    ]
    assert refresh_speed.side_by_side(tables).splitlines()[::2] == ['| model | x, eager | y, eager |', '| a | 1 | 2 |']
    assert refresh_speed.side_by_side(tables).splitlines()[-1] == '| a | 3 | 4 |'
    assert refresh_speed.side_by_side([tables[0], header + '| a | y | eager | 5 |']).splitlines()[-1] == '| a |  | 5 |'
    tables = [header + '| a | x | eager | 1 |\n| b | x | eager | 2 |', header + '| a | x | eager | 3 |']
    assert refresh_speed.side_by_side(tables, ('one', 'two')).splitlines()[::2] == [
        '| model | one | two |',
        '| a | 1 | 3 |',
    ]
    assert refresh_speed.side_by_side(tables, ('one', 'two')).splitlines()[-1] == '| b | 2 |  |'
