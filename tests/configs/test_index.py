"""model-index.yml, the metafiles, and the pages beside the configs."""

import re

import pytest
import yaml

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')

from mmengine.config import Config

from .stand_ins import CONFIGS, config_paths

ROOT = CONFIGS.parent
IMPORTS = [ROOT / path for path in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']]


def test_every_family_is_imported():
    assert sorted(IMPORTS) == sorted(CONFIGS.glob('*/metafile.yml'))
    assert {path.parent for path in IMPORTS} == {
        CONFIGS / path.relative_to(CONFIGS).parts[0] for path in config_paths()
    }


@pytest.mark.parametrize('path', IMPORTS, ids=lambda path: path.parent.name)
def test_metafile_names_every_config_once(path):
    told = yaml.safe_load(path.read_text())
    (collection,) = told['Collections']
    assert (ROOT / collection['README']).is_file() and (ROOT / collection['Code']['URL']).exists()
    configs = [ROOT / model['Config'] for model in told['Models']]
    assert sorted(configs) == [p for p in config_paths() if path.parent in p.parents]
    for model in told['Models']:
        assert model['In Collection'] == collection['Name'] and (ROOT / model['Config']).stem == model['Name']


@pytest.mark.parametrize('path', IMPORTS, ids=lambda path: path.parent.name)
def test_pages_name_files_that_exist(path):
    page = (path.parent / 'README.md').read_text()
    named = set(re.findall(r'\b(?:configs|tools)/[\w./-]+\w', page))
    assert named and all((ROOT / name).exists() for name in named), named
    links = re.findall(r'\]\((?!http)([^)#]+)\)', page)
    assert all((path.parent / link).exists() for link in links), links
    families = [stem for stem in (p.stem for p in config_paths() if p.parent == path.parent) if stem not in page]
    assert not families, families


@pytest.mark.parametrize('page', ['README.md', 'docs/surgery.md'])
def test_examples_keep_the_hooks_of_whatever_base_they_are_put_on(page, tmp_path):
    hooks = re.findall(r'^(custom_hooks = \[.*?\])(?:  #.*)?$', (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert hooks
    for i, assignment in enumerate(hooks):
        for base in ('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', 'mmdet::_base_/default_runtime.py'):
            path = tmp_path / f'{i}_{base.count("rtm")}.py'
            path.write_text(f'_base_ = {base!r}\n{assignment}\n')
            own = {'EMAHook', 'PipelineSwitchHook'} if 'rtmdet' in base else set()
            types = {hook['type'] for hook in Config.fromfile(path).custom_hooks}
            assert types >= own | {'StagedSparsificationHook'}
