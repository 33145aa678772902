"""Programs that no compiler wrote: refused, or harmless.

Builds with sanitizers, whose workspaces hold NaN before they are written, run these too (tests/kernels/test_builds.py).
"""

from functools import lru_cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnv2_plugin.deploy import lower
from cnv2_plugin.kernels.native_model import NativeStages
from cnv2_plugin.kernels.opcodes import ACTIVATIONS, LOADING
from cnv2_plugin.kernels.operator import native_stages
from cnv2_plugin.kernels.program import Program
from tests.kernels.cases import TINY, finished, in_bytes, native, native_form, tiny_stages

pytestmark = pytest.mark.needs('kernels')


@lru_cache(maxsize=1)
def forms_to_damage() -> list[NativeStages]:
    """Dense stages, shuffled stages, a head, and dense stages and a head in bytes."""
    arch = dict(channels=(16, 24), repeats=(2, 2), stem_width=16, final_width=24, sparse_factor=2, with_sfr=True)
    shuffled = finished('sfr_shufflenetv2', arch=arch, num_classes=5)
    shuffled.switch_to_deploy()
    with_head = native_form(finished('condensenetv2', arch=dict(TINY, head_width=21)), (3, 32, 32))
    bytes_ = finished('condensenetv2', arch=dict(TINY, head_width=21), num_classes=5)
    bytes_.switch_to_deploy()
    in_bytes(bytes_)
    return [
        tiny_stages()[1],
        native(shuffled.stages, 16),
        with_head.global_pool.pool,
        native(bytes_.stages, 16),
        lower(bytes_, (3, 32, 32), 'native', verify=False).global_pool.pool,
    ]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_plan_is_refused_or_harmless(data):
    """Any words may stand anywhere: the kernels never touch memory that is not theirs (see the sanitizer builds)."""
    form = data.draw(st.sampled_from(forms_to_damage()))
    images = torch.ones(1, int(form.plan[1]), 6, 5)
    plan = form.plan.clone()
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, plan.numel() - 1))
        plan[place] = data.draw(st.one_of(st.integers(-3, 70), st.integers(-(2**31), 2**31 - 1)))
    try:
        result = native_stages(images, form.weights, plan, form.shape)
    except ValueError:
        return
    assert result.shape[0] == 1 and not result.isnan().any()


KINDS = ('pool', 'zero', 'split', 'maximum', 'select', 'spatial', 'average', 'linear', 'excite', 'normalise')


@st.composite
def plans(draw) -> Program:
    """Instructions that each fit the maps they name, in any order and of any slots."""
    channels = draw(st.integers(1, 4))
    plan = Program(channels, draw(st.integers(1, channels)))
    maps = [plan.add_map(channels * draw(st.sampled_from([1, 1, 4])), draw(st.integers(0, 2)), draw(st.booleans()))
            for _ in range(draw(st.integers(2, 5)))]  # fmt: skip
    some_map = st.sampled_from(maps)
    plan.load(draw(some_map), draw(st.sampled_from(sorted(LOADING))))
    for _ in range(draw(st.integers(0, 6))):
        src, dst = draw(some_map), draw(some_map)
        kind = draw(st.sampled_from(KINDS))
        if kind in ('pool', 'split', 'maximum', 'average'):
            getattr(plan, kind)(src, dst)
        elif kind == 'zero':
            plan.zero(dst)
        elif kind == 'normalise':
            width = plan.maps[src][0] - draw(st.integers(0, 1))
            plan.normalise(src, (torch.randn(width), torch.randn(width)), draw(st.sampled_from(sorted(ACTIVATIONS))))
        elif kind == 'linear':
            plan.linear(src, dst, torch.randn(channels, channels), in_bytes=draw(st.booleans()))
        elif kind == 'excite':
            plan.excite(src, 0, torch.randn(2, channels), torch.randn(channels, 2), draw(st.booleans()))
        else:
            every = torch.arange(channels)[None]
            weight = torch.randn(1, channels, channels, *([3, 3] if kind == 'spatial' else []))
            last = dict(stride=draw(st.integers(1, 2))) if kind == 'spatial' else dict(accumulate=draw(st.booleans()))
            if kind == 'select':
                last['limits'] = draw(st.sampled_from([None, (-1.0, 3.0)]))
            getattr(plan, kind)(src, dst, weight, every, every, **last)
    plan.store(draw(some_map), range(plan.out_channels))
    return plan


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans(), st.integers(1, 20), st.integers(1, 20), st.integers(1, 3), st.lists(st.integers(0, 2), max_size=3))
def test_any_order_of_instructions_is_refused_or_harmless(plan, height, width, batch, changes):
    images = torch.ones(batch, plan.in_channels, height, width)
    for shape in ([plan.out_channels, *changes], [plan.out_channels]):
        try:
            result = native_stages(images, plan.weights(), plan.words(), shape)
        except ValueError:
            continue
        assert result.shape[:2] == (batch, plan.out_channels) and not result.isnan().any()
