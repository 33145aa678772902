"""Safe loading and atomic saving."""

import os
import pickle

import numpy as np
import pytest
import torch

from cnv2_plugin.checkpoints import CheckpointError, atomic_path, find_state_dict, load_checkpoint, save_checkpoint
from cnv2_plugin.checkpoints.io import staged

pytestmark = pytest.mark.smoke


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_round_trip(tmp_path, suffix):
    state = {'a': torch.randn(2, 3), 'mask': torch.tensor([True, False]), 'stage': torch.tensor(3)}
    path = tmp_path / f'x.{suffix}'
    save_checkpoint(state, path, dict(arch='x', deploy=True))
    checkpoint = load_checkpoint(path)
    loaded = find_state_dict(checkpoint)
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[k], state[k]) for k in state)
    assert str(checkpoint['meta']['deploy']) == 'True'


def test_averaged_weights_are_preferred_and_prefixes_dropped():
    a, b = torch.zeros(1), torch.ones(1)
    checkpoint = dict(state_dict={'module.w': a}, state_dict_ema={'module._orig_mod.w': b})
    assert find_state_dict(checkpoint) == {'w': b}
    assert find_state_dict(checkpoint, use_ema=False) == {'w': a}
    assert find_state_dict({'w': a}) == {'w': a}
    with pytest.raises(CheckpointError, match='no tensors'):
        find_state_dict({'epoch': 3})


def test_a_payload_never_runs(tmp_path):
    path = tmp_path / 'evil.pth'
    torch.save(dict(state_dict={'w': torch.zeros(1)}, extra=Payload(tmp_path / 'made')), path)
    with pytest.raises(CheckpointError, match='--trust'):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Payload(tmp_path / 'made')))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not (tmp_path / 'made').exists()
    load = load_checkpoint
    torch.save(dict(extra=Payload(tmp_path / 'made')), path)
    load(path, trust=True)
    assert (tmp_path / 'made').exists()


def test_files_that_are_no_checkpoints(tmp_path):
    whole = tmp_path / 'whole.pth'
    save_checkpoint({'w': torch.randn(100)}, whole)
    cases = {
        'empty.pth': b'',
        'text.pth': b'hello, world',
        'cut.pth': whole.read_bytes()[:200],
        'cut.safetensors': b'\x10\x00\x00',
        'list.pth': None,
    }
    for name, content in cases.items():
        path = tmp_path / name
        if content is None:
            torch.save([torch.zeros(1)], path)
        else:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(path)
    for path in (tmp_path, tmp_path / 'missing.pth'):
        with pytest.raises(CheckpointError, match='is not a file'):
            load_checkpoint(path)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / 'x.bin'
    path.write_bytes(b'old')
    with pytest.raises(RuntimeError, match='boom'), atomic_path(path) as temporary:
        temporary.write_bytes(b'half')
        raise RuntimeError('boom')
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]
    with atomic_path(path) as temporary:
        temporary.write_bytes(b'new')
    assert path.read_bytes() == b'new' and list(tmp_path.iterdir()) == [path]


def test_shared_tensors_save_as_safetensors(tmp_path):
    tensor = torch.arange(6.0)
    save_checkpoint({'a': tensor, 'b': tensor.view(2, 3)}, tmp_path / 'x.safetensors')
    loaded = find_state_dict(load_checkpoint(tmp_path / 'x.safetensors'))
    assert np.array_equal(loaded['a'], loaded['b'].flatten())


def test_files_that_belong_together_appear_together(tmp_path):
    paths = [tmp_path / 'a.txt', tmp_path / 'b.txt', tmp_path / 'folder' / 'c.txt']
    paths[2].parent.mkdir()
    paths[0].write_text('old')
    with pytest.raises(RuntimeError, match='boom'), staged(*paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text('half')
        raise RuntimeError('boom')
    assert sorted(tmp_path.rglob('*.txt')) == [paths[0]] and paths[0].read_text() == 'old'
    with staged(*paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text('new')
        assert paths[0].read_text() == 'old'
    assert [path.read_text() for path in paths] == ['new'] * 3
    assert sorted(tmp_path.rglob('*')) == sorted([*paths, paths[2].parent])
