"""Verification notices what it must notice."""

import pytest
import torch
from torch import nn

from cnv2_plugin.deploy import VerificationError, verify


def test_equal_forms():
    model = nn.Conv2d(3, 4, 1).train()
    report = verify(model, model, (3, 5, 5))
    assert (report.max_abs, report.max_rel, report.argmax_agreement, report.num_inputs) == (0, 0, 1, 4)
    assert model.training
    report.check(0)


def test_differences_are_measured_and_refused():
    model = nn.Conv2d(3, 4, 1, bias=False)
    report = verify(model, lambda x: model(x) * 1.5, (3, 5, 5))
    assert report.max_rel == pytest.approx(0.5) and report.argmax_agreement == 1
    with pytest.raises(VerificationError, match='differs from the reference by 0.5'):
        report.check(1e-3)
    assert verify(model, lambda x: -model(x), (3, 5, 5)).argmax_agreement < 1


def test_nan_never_passes():
    model = nn.Conv2d(3, 4, 1)
    report = verify(model, lambda x: model(x) * float('nan'), (3, 5, 5))
    with pytest.raises(VerificationError):
        report.check(1e9)


def test_shapes_and_number_of_outputs():
    with pytest.raises(VerificationError, match='1 outputs, the candidate 2'):
        verify(lambda x: x, lambda x: (x, x), (3, 5, 5))
    with pytest.raises(VerificationError, match=r'\(1, 3, 5, 5\)'):
        verify(lambda x: x, lambda x: x[..., 1:], (3, 5, 5))


def test_float64_and_several_outputs():
    report = verify(lambda x: (x, 2 * x), lambda x: [x, 2 * x], (1, 2, 2), dtype=torch.float64)
    assert report.max_abs == 0
