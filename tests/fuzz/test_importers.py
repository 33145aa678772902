"""Random damage to files and state dicts: a clear error of ours or a model that loads, for a bounded time."""

import argparse
import io
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cnv2_plugin.toolkits  # noqa: F401  (registers the models)
from cnv2_plugin.analysis.report_log import read_log
from cnv2_plugin.checkpoints import CheckpointError, find_state_dict, import_official, load_checkpoint, save_checkpoint
from cnv2_plugin.checkpoints.official import import_official_state_dict
from cnv2_plugin.toolkits.key_map import convert_keys
from tests.reference import official

OURS = (CheckpointError, ValueError)
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large]
NET = official.small('110-cifar', growth=(8, 8, 16))


def bounded(examples):
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=CHECKS)


@cache
def state(form):
    training = official.random_state_dict(NET, None, torch.Generator().manual_seed(0))
    return training if form == 'training' else official.convert(training, NET)


@cache
def content(form, legacy):
    buffer = io.BytesIO()
    args = argparse.Namespace(stages='1-1-1', dataset='cifar10')
    torch.save(dict(state_dict=state(form), args=args), buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@cache
def safetensors_content():
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(state('training'), Path(folder) / 'x.safetensors')
        return (Path(folder) / 'x.safetensors').read_bytes()


def damage(raw, edits, cut):
    """Overwrite bytes at positions given as shares of the length, then cut the end off."""
    raw = bytearray(raw)
    for share, value, head in edits:
        limit = min(len(raw), 4096) if head else len(raw)
        raw[int(share * (limit - 1))] = value
    return bytes(raw[: int(cut * len(raw))])


share = st.floats(0, 1)
EDITS = st.lists(st.tuples(share, st.integers(0, 255), st.booleans()), max_size=12)
CUT = st.one_of(st.just(1.0), share)


@pytest.mark.parametrize('kind', ['training', 'converted', 'old', 'safetensors'])
@bounded(25)
@given(edits=EDITS, cut=CUT)
def test_damaged_files(kind, edits, cut):
    raw = safetensors_content() if kind == 'safetensors' else content(kind.replace('old', 'training'), kind == 'old')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ('x.safetensors' if kind == 'safetensors' else 'x.pth')
        path.write_bytes(damage(raw, edits, cut))
        try:
            imported = import_official(path)
        except OURS as error:
            assert str(error)
            return
        assert imported.state_dict


@bounded(30)
@given(raw=st.binary(max_size=400), suffix=st.sampled_from(['pth', 'safetensors']))
def test_arbitrary_bytes(raw, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f'x.{suffix}'
        path.write_bytes(raw)
        with pytest.raises(CheckpointError):
            find_state_dict(load_checkpoint(path))


def changed(tensor, how, rng):
    """One kind of damage to a tensor."""
    if how == 'shape':
        return tensor.flatten()
    if how == 'empty':
        return tensor.new_zeros((0, *tensor.shape[1:]))
    if how == 'scalar':
        return tensor.new_zeros(())
    if how == 'extra':
        return tensor[None]
    if how == 'integers':
        return tensor.long()
    if how == 'half':
        return tensor.half() if tensor.is_floating_point() else tensor
    if how == 'nan':
        return torch.full_like(tensor, float('nan')) if tensor.is_floating_point() else tensor
    if how == 'huge':
        return torch.full_like(tensor, float('inf') if tensor.dtype == torch.float16 else 2**30)
    if how == 'negative':
        return -tensor - 1
    shuffled = tensor.flatten().clone()
    return shuffled[torch.randperm(shuffled.numel(), generator=rng)].view_as(tensor)


HOW = [
    'shape',
    'empty',
    'scalar',
    'extra',
    'integers',
    'half',
    'nan',
    'huge',
    'negative',
    'shuffled',
    'gone',
    'renamed',
]


@pytest.mark.parametrize('form', ['training', 'converted'])
@bounded(60)
@given(edits=st.lists(st.tuples(share, st.sampled_from(HOW)), min_size=1, max_size=3), seed=st.integers(0, 9))
def test_damaged_state_dicts(form, edits, seed):
    damaged = dict(state(form))
    rng = torch.Generator().manual_seed(seed)
    for position, how in edits:
        key = sorted(damaged)[int(position * (len(damaged) - 1))]
        tensor = damaged.pop(key)
        if how == 'renamed':
            damaged[key.replace('denselayer', 'denselayer_', 1)] = tensor
        elif how != 'gone':
            damaged[key] = changed(tensor, how, rng)
    for use in (loads, lambda d: convert_keys(d, 'mmpretrain'), lambda d: find_state_dict(dict(state_dict=d))):
        try:
            use(damaged)
        except OURS as error:
            assert str(error)


def loads(damaged):
    """What is imported at all loads strictly."""
    imported = import_official_state_dict(damaged)
    model = timm.create_model(imported.model_name, **imported.model_kwargs)
    model.load_state_dict(imported.state_dict)


VALUES = st.one_of(
    st.none(), st.integers(-9, 2**40), st.floats(), st.text(max_size=8), st.lists(st.integers(0, 99), max_size=4)
)


@bounded(40)
@given(args=st.dictionaries(
    st.sampled_from(['stages', 'growth', 'bottleneck', 'group_1x1', 'group_3x3', 'group_trans', 'condense_factor',
                     'trans_factor', 'fc_channel', 'HS_start_block', 'SE_start_block', 'dataset']),
    VALUES))  # fmt: skip
def test_strange_options_in_the_file(args):
    try:
        import_official_state_dict(state('training'), argparse.Namespace(**args))
    except OURS as error:
        assert str(error)


@bounded(40)
@given(
    text=st.text(alphabet='{}[]",:0123456789.eE-+naifxloss\n step', max_size=200),
    suffix=st.sampled_from(['csv', 'json']),
)
def test_strange_logs(text, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f'x.{suffix}'
        path.write_text(text)
        try:
            assert read_log(path)
        except ValueError as error:
            assert 'no training curve' in str(error)


@pytest.mark.slow
def test_random_damage_for_half_a_minute():
    generator = torch.Generator().manual_seed(int(time.time()))
    draw = lambda high: int(torch.randint(high, (1,), generator=generator))  # noqa: E731
    raws = {'training': content('training', False), 'old': content('training', True), 'st': safetensors_content()}
    end = time.monotonic() + 30
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            kind = ('training', 'old', 'st')[draw(3)]
            raw = bytearray(raws[kind])
            for _ in range(1 + draw(8)):
                raw[draw(min(len(raw), 10 ** (2 + draw(5))))] = draw(256)
            path = Path(folder) / ('x.safetensors' if kind == 'st' else 'x.pth')
            path.write_bytes(raw if draw(3) else raw[: draw(len(raw))])
            try:
                import_official(path)
            except OURS as error:
                assert str(error)
