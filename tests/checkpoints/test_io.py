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


def shared():
    node = [torch.zeros(1)]
    for _ in range(60):
        node = [node, node]
    return dict(state_dict={'w': torch.zeros(3)}, more=node)


def cyclic():
    content = dict(state_dict={'w': torch.zeros(3)}, more=[])
    content['more'].append(content['more'])
    return dict(content, itself=content)


def views():
    storage = torch.zeros(100_000)
    return dict(state_dict={f'w{i}': storage[i:] for i in range(200)})


HOSTILE = {
    'meta': (lambda: dict(state_dict={'w': torch.zeros(3, device='meta')}), 'w is a meta tensor'),
    'sparse': (lambda: dict(state_dict={'w': torch.eye(3).to_sparse()}), 'w is a .*sparse.* tensor'),
    'quantised': (
        lambda: dict(state_dict={'w': torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.quint8)}), 'w is a quant'),
    'views of one storage': (views, 'claim'),
    'models': (lambda: {f'{i}.stem.weight': torch.zeros(1) for i in range(500)}, '500 models'),
}  # fmt: skip


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('name', HOSTILE)
def test_tensors_that_are_no_weights_are_refused_in_a_sentence(name, old, tmp_path):
    make, message = HOSTILE[name]
    torch.save(make(), tmp_path / 'x.pth', _use_new_zipfile_serialization=not old)
    told = 'damaged|besides tensors' if old and name in ('sparse', 'quantised') else message
    with pytest.raises(CheckpointError, match=told):
        find_state_dict(load_checkpoint(tmp_path / 'x.pth'))


@pytest.mark.parametrize('make', [shared, cyclic])
def test_containers_may_be_shared_and_cyclic(make, tmp_path):
    torch.save(make(), tmp_path / 'x.pth')
    assert find_state_dict(load_checkpoint(tmp_path / 'x.pth')).keys() == {'w'}


def test_a_write_keeps_permissions_and_goes_through_links(tmp_path):
    target, link = tmp_path / 'folder' / 'x.pth', tmp_path / 'link.pth'
    target.parent.mkdir()
    save_checkpoint({'w': torch.zeros(2)}, target)
    target.chmod(0o600)
    link.symlink_to(target)
    save_checkpoint({'w': torch.ones(2)}, link)
    assert link.is_symlink() and target.stat().st_mode & 0o777 == 0o600
    assert torch.equal(find_state_dict(load_checkpoint(target))['w'], torch.ones(2))
    assert list(tmp_path.iterdir()) == [target.parent, link] or list(tmp_path.iterdir()) == [link, target.parent]


def test_remains_of_killed_writers_go_after_a_day(tmp_path):
    with staged(tmp_path / 'x.pth') as (temporary,):
        names = [temporary.parent.name]
        temporary.write_text('x')
    others = ['.cnv2-mine', '.x-abcdefgh', 'folder']
    for name in [*names, *others]:
        (tmp_path / name).mkdir()
        (tmp_path / name / 'x.pth').write_text('half')
    atomic = lambda: save_checkpoint({'w': torch.zeros(1)}, tmp_path / 'y.pth')  # noqa: E731
    atomic()
    assert (tmp_path / names[0]).is_dir()
    for name in [*names, *others]:
        os.utime(tmp_path / name, (0, 0))
    atomic()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, 'x.pth', 'y.pth'])


def test_a_part_of_a_storage_is_written_alone(tmp_path):
    save_checkpoint({'w': torch.zeros(100_000)[:10]}, tmp_path / 'x.pth')
    assert (tmp_path / 'x.pth').stat().st_size < 10_000
