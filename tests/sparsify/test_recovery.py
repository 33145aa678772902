"""What a training gets back after a stage: a rewound learning rate, and a teacher's logits."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from cnv2_plugin.sparsify import cosine_with_rewind, distillation_loss


def test_the_rate_goes_back_to_its_peak_after_the_last_stage():
    at = 0.4
    assert cosine_with_rewind(0.2, at) == pytest.approx((1 + math.cos(math.pi * 0.2)) / 2)
    assert cosine_with_rewind(0.05, at, warmup=0.1) == pytest.approx(0.5)
    assert cosine_with_rewind(at, at, peak=0.8) == pytest.approx(0.8)
    assert cosine_with_rewind(0.7, at) == pytest.approx(0.5)
    assert cosine_with_rewind(1.0, at) == 0 == cosine_with_rewind(1.0, 1.0)
    assert cosine_with_rewind(0.7, at, peak=0) == cosine_with_rewind(0.7, 1.0)


def test_a_scheduler_with_it_resumes():
    def make():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
        return optimizer, LambdaLR(optimizer, lambda step: cosine_with_rewind(step / 20, at=0.5))

    def rates(optimizer, scheduler, steps):
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            scheduler.step()
        return found

    whole, first, second = make(), make(), make()
    expected = rates(*whole, 20)
    begun = rates(*first, 13)
    for new, old in zip(second, first):
        new.load_state_dict(old.state_dict())
    assert begun + rates(*second, 7) == expected
    assert expected[9] < expected[10] == 0.1 > expected[11]


def test_distillation_is_the_divergence_of_softened_predictions():
    torch.manual_seed(0)
    logits, teacher = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7)
    for temperature in (1.0, 4.0):
        p, q = (F.softmax(x / temperature, 1) for x in (teacher, logits))
        expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
        assert torch.allclose(distillation_loss(logits, teacher, temperature), expected, rtol=1e-4)
    assert distillation_loss(teacher, teacher).abs() < 1e-6
    distillation_loss(logits, teacher.requires_grad_()).backward()
    assert logits.grad.abs().sum() > 0 and teacher.grad is None
    half = distillation_loss(logits.to(torch.bfloat16), teacher.to(torch.bfloat16))
    assert half.dtype == torch.float32


def test_wrong_uses_are_told_in_a_sentence():
    with pytest.raises(ValueError, match=r'shape \(2, 3\) but those of the teacher \(2, 4\)'):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match='temperature is 0'):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), 0)
    with pytest.raises(ValueError, match='at is 0.1 and warmup 0.2'):
        cosine_with_rewind(0.5, 0.1, warmup=0.2)
    with pytest.raises(ValueError, match='peak is -1'):
        cosine_with_rewind(0.5, 0.5, peak=-1)
