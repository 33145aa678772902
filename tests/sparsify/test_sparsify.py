"""Schedule and sparsifier in the loops that people write: bare, accumulated, AMP, compiled, DDP, EMA, resumed."""

import copy

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cnv2_plugin.deploy import condense
from cnv2_plugin.layers import GroupSparseConv2d, LearnedGroupConv, SparseFeatureReactivation, UnfinishedPruningError
from cnv2_plugin.sparsify import SparsificationSchedule, StagedSparsifier
from tests.reference import schedule as slow

ARCH = dict(layers=[2, 1], growth=[8, 16], groups_1x1=4, groups_3x3=2, groups_sfr=8, condense_factor=3, sparse_factor=5)


def small_model(seed=0):
    torch.manual_seed(seed)
    return timm.create_model('condensenetv2', arch=ARCH, num_classes=5)


def masks(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith('mask')}


def same_masks(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def train(model, sparsifier, steps, start=0, optimizer=None, forward=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for step in range(start, start + steps):
        x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(step))
        loss = (forward or model)(x).square().mean() + sparsifier.regularization()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sparsifier.step()
    return optimizer


@given(st.integers(1, 12), st.integers(1, 400), st.sampled_from([0.25, 0.5, 1.0]))
def test_stage_is_the_reference_formula(factor, total, fraction):
    schedule = SparsificationSchedule(fraction)
    for step in {0, 1, total // 3, total // 2, total - 1, total}:
        progress = step / total
        assert schedule.stage(progress, factor) == slow.stage_at(progress, factor, fraction)


@pytest.mark.parametrize('factor', [2, 3, 6, 8])
def test_stages_fall_exactly_on_their_thresholds(factor):
    schedule = SparsificationSchedule()
    for i in range(1, factor):
        threshold = i / (2 * (factor - 1))
        assert schedule.stage(threshold, factor) == i
        assert schedule.stage(threshold - 1e-12, factor) == i - 1
    assert schedule.stage(1.0, factor) == factor - 1


@pytest.mark.parametrize('fraction', [0, -1, 1.1])
def test_sparse_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match='sparse_fraction'):
        SparsificationSchedule(fraction)


@pytest.mark.parametrize('factor', [2, 3, 8, 17])
@pytest.mark.parametrize(('fraction', 'start'), [(0.5, 0.1), (1.0, 0.25)])
def test_a_later_part_begins_and_ends_where_it_says(factor, fraction, start):
    schedule = SparsificationSchedule(fraction, start)
    due = [schedule.due(i, factor) for i in range(1, factor)]
    gaps = [b - a for a, b in zip([start, *due], due)]
    assert due[-1] == pytest.approx(fraction) and due[0] > start
    assert schedule.stage(start, factor) == 0 and schedule.stage(fraction + 1e-9, factor) == factor - 1
    for i, progress in enumerate(due, 1):
        assert schedule.stage(progress, factor) == i and schedule.stage(progress - 1e-12, factor) == i - 1
    assert gaps == pytest.approx([gaps[0]] * len(gaps))


def test_states_tell_other_schedules_apart():
    model = nn.Sequential(LearnedGroupConv(8, 8, 2, 4))
    papers, later = StagedSparsifier(model, 100), StagedSparsifier(model, 100, start=0.1)
    assert papers.state_dict().keys() == {'steps_done', 'total_steps', 'sparse_fraction'}
    later.load_state_dict(later.state_dict())
    for sparsifier, state in ((later, papers.state_dict()), (papers, later.state_dict())):
        with pytest.raises(ValueError, match='start=.* but this one .*'):
            sparsifier.load_state_dict(state)
    for old in (dict(spacing='cubic'), dict(importance='taylor')):
        with pytest.raises(ValueError, match='=(cubic|taylor) but this one (even|l1)'):
            papers.load_state_dict({**papers.state_dict(), **old})


@pytest.mark.parametrize('start', [0.5, -0.1])
def test_starts_out_of_range(start):
    with pytest.raises(ValueError, match=f'start is {start}; it takes a number of at least 0 and below sparse_fract'):
        SparsificationSchedule(0.5, start)


def test_every_layer_follows_its_own_factor():
    model = small_model()
    sparsifier = StagedSparsifier(model, total_steps=40)
    seen = set()
    for step in range(1, 41):
        sparsifier.step()
        stages = tuple(int(layer.stage) for layer in sparsifier.layers.values())
        expected = tuple(slow.stage_at(step / 40, layer.factor) for layer in sparsifier.layers.values())
        assert stages == expected
        seen.add(stages)
    assert len(seen) == 5
    assert sparsifier.finished


def test_a_jump_does_every_stage_passed():
    jumped, stepped = small_model(), small_model()
    StagedSparsifier(jumped, 100).set_progress(1.0)
    gradual = StagedSparsifier(stepped, 100)
    for _ in range(100):
        gradual.step()
    assert same_masks(masks(jumped), masks(stepped))


def test_progress_never_goes_back():
    model = small_model()
    sparsifier = StagedSparsifier(model, 100)
    assert sparsifier.set_progress(0.4)
    before = masks(model)
    assert not sparsifier.set_progress(0.1)
    assert same_masks(masks(model), before)


@pytest.mark.parametrize('cut', [1, 7, 13, 19, 20, 27])
def test_resuming_anywhere_gives_the_same_masks_and_weights(cut):
    whole = small_model()
    sparsifier = StagedSparsifier(whole, 30, group_lasso=1e-4)
    optimizer = train(whole, sparsifier, cut)
    saved = copy.deepcopy((whole.state_dict(), sparsifier.state_dict(), optimizer.state_dict()))
    train(whole, sparsifier, 30 - cut, cut, optimizer)

    resumed = small_model(seed=1)
    resumed.load_state_dict(saved[0])
    again = StagedSparsifier(resumed, 30, group_lasso=1e-4)
    again.load_state_dict(saved[1])
    optimizer = torch.optim.SGD(resumed.parameters(), 0.05, momentum=0.9)
    optimizer.load_state_dict(saved[2])
    train(resumed, again, 30 - cut, cut, optimizer)
    assert again.finished
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_resuming_with_another_length_keeps_the_progress():
    sparsifier = StagedSparsifier(small_model(), 30)
    for _ in range(10):
        sparsifier.step()
    longer = StagedSparsifier(small_model(), 60)
    longer.load_state_dict(sparsifier.state_dict())
    assert longer.steps_done == 20


def test_finishing_is_explicit():
    model = small_model()
    sparsifier = StagedSparsifier(model, 10)
    sparsifier.set_progress(0.49)
    assert not sparsifier.finished
    with pytest.raises(UnfinishedPruningError, match=r'stages\.0\.layers\.0\.conv_1 \(stage 1 of 2\)'):
        condense(model)
    sparsifier.set_progress(0.5)
    assert sparsifier.finished
    condense(model)


def test_sparsity_per_layer_and_in_total():
    model = small_model()
    sparsifier = StagedSparsifier(model, 10)
    assert set(sparsifier.sparsity().values()) == {1.0}
    sparsifier.set_progress(1)
    kept = sparsifier.sparsity()
    for name, layer in sparsifier.layers.items():
        assert kept[name] == pytest.approx(layer.mask.float().mean().item())
        assert kept[name] == pytest.approx(-(-layer.num_units // layer.factor) / layer.num_units)
    weights = [layer.mask for layer in sparsifier.layers.values()]
    assert kept['total'] == pytest.approx(sum(w.sum().item() for w in weights) / sum(w.numel() for w in weights))
    condensed = StagedSparsifier(condense(model), 10)
    assert condensed.sparsity() == pytest.approx(kept)


def test_group_lasso_shrinks_units_and_ends_with_the_last_stage():
    model = small_model()
    sparsifier = StagedSparsifier(model, 10, group_lasso=0.5)
    expected = sum(
        slow.group_lasso(
            layer.conv.weight, layer.mask, layer.groups, 'lgc' if isinstance(layer, LearnedGroupConv) else 'sfr'
        )
        for layer in sparsifier.layers.values()
    )
    assert torch.allclose(sparsifier.regularization(), 0.5 * expected, rtol=1e-5)
    sparsifier.regularization().backward()
    assert all(layer.conv.weight.grad.abs().sum() > 0 for layer in sparsifier.layers.values())
    sparsifier.set_progress(1)
    assert sparsifier.regularization() == 0


def test_pruned_weights_of_a_fine_tuned_model_stay_as_they_are():
    class WithNeck(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = small_model()
            self.neck = SparseFeatureReactivation(8, 16, 4, 4)

    model = WithNeck()
    StagedSparsifier(model.backbone, 10).set_progress(1)
    before = masks(model.backbone)
    sparsifier = StagedSparsifier(model, 100)
    assert not sparsifier.finished
    sparsifier.set_progress(0.2)
    assert int(model.neck.stage) == 1
    sparsifier.set_progress(0.5)
    assert sparsifier.finished and same_masks(masks(model.backbone), before)


def test_gradient_accumulation_counts_optimiser_steps():
    model = small_model()
    sparsifier = StagedSparsifier(model, total_steps=8)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for micro in range(32):
        (model(torch.randn(2, 3, 16, 16)).mean() / 4).backward()
        if micro % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
            sparsifier.step()
        if micro == 14:
            assert not sparsifier.finished
    assert sparsifier.finished and sparsifier.steps_done == 8


def test_under_autocast():
    model = small_model()
    sparsifier = StagedSparsifier(model, 12, group_lasso=1e-5)

    def forward(x):
        with torch.autocast('cpu', torch.bfloat16):
            return model(x)

    train(model, sparsifier, 12, forward=forward)
    assert sparsifier.finished
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_compiled_models_see_new_masks_without_recompiling():
    model = LearnedGroupConv(8, 16, 4, 4)
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    sparsifier = StagedSparsifier(compiled, 6)
    assert list(sparsifier.layers) == ['']
    x = torch.randn(2, 8, 5, 5)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(6):
            compiled(x).mean().backward()
            sparsifier.step()
    assert torch.equal(compiled.eval()(x), model.eval()(x))
    assert int(model.stage) == 3


def test_names_do_not_show_wrappers():
    model = small_model()
    plain = set(StagedSparsifier(model, 10).layers)
    assert set(StagedSparsifier(torch.compile(model), 10).layers) == plain


def test_inside_ddp(tmp_path):
    torch.distributed.init_process_group('gloo', f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        model = small_model()
        wrapped = DistributedDataParallel(model)
        sparsifier = StagedSparsifier(wrapped, 10)
        train(wrapped, sparsifier, 10)
        assert sparsifier.finished
        assert set(sparsifier.layers) == set(StagedSparsifier(model, 10).layers)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize('foreach', [True, False])
def test_timm_ema_copy_has_the_masks_and_condenses(foreach):
    model = small_model()
    ema = ModelEmaV3(model, decay=0.9, foreach=foreach)
    sparsifier = StagedSparsifier(model, 10)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(10):
        train(model, sparsifier, 1, step, optimizer)
        ema.update(model, step=step)
        assert same_masks(masks(ema.module), masks(model))
    x = torch.randn(2, 3, 16, 16)
    averaged = ema.module.eval()
    expected = averaged(x)
    deployed = condense(averaged)(x)
    assert ((deployed - expected).abs().max() / expected.abs().max()).item() < 1e-5


def test_nan_in_one_layer_stops_before_any_mask_changes():
    model = small_model()
    sparsifier = StagedSparsifier(model, 10)
    list(sparsifier.layers.values())[-1].conv.weight.data.fill_(float('nan'))
    before = masks(model)
    with pytest.raises(ValueError, match=r'stages\.1\.layers\.0\.sfr has NaN'):
        sparsifier.set_progress(1)
    assert same_masks(masks(model), before)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: StagedSparsifier(nn.Linear(2, 2), 10), 'no group-sparse layer'),
        (lambda: StagedSparsifier(small_model(), 0), 'total_steps is 0'),
        (lambda: StagedSparsifier(small_model(), 7), r'leaves 3 steps for 4 pruning stages; train for at least 8'),
        (lambda: StagedSparsifier(small_model(), 10, group_lasso=-1), 'group_lasso is -1'),
        (lambda: StagedSparsifier(small_model(), 10, sparse_fraction=2), 'sparse_fraction is 2'),
    ],
)
def test_wrong_settings_say_what_fits(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_layer_on_its_own_can_be_sparsified():
    layer = GroupSparseConv2d(8, 8, 2, 4)
    sparsifier = StagedSparsifier(layer, 6)
    sparsifier.set_progress(1)
    assert sparsifier.finished and sparsifier.stage == 3
