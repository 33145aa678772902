"""A hypothesis state machine over a model's life; the invariants of the method hold after every step."""

import tempfile
from copy import deepcopy
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from timm.utils import ModelEmaV3

import cnv2_plugin.toolkits  # noqa: F401  (registers the models)
from cnv2_plugin.checkpoints import find_state_dict, load_checkpoint, save_checkpoint
from cnv2_plugin.deploy import condense, export_onnx, verify
from cnv2_plugin.deploy.condense import condense_state_dict
from cnv2_plugin.layers import UnfinishedPruningError
from cnv2_plugin.sparsify import StagedSparsifier
from tests.helpers import random_arch, relative_difference
from tests.reference.schedule import alive_units

STEPS = 40


class Life(RuleBasedStateMachine):
    """Training, pruning, saving, loading, averaging, condensing and resuming in any order."""

    exports = False

    @initialize(seed=st.integers(0, 40), dtype=st.sampled_from([torch.float32, torch.float64]))
    def build(self, seed, dtype):
        torch.manual_seed(seed)
        self.dtype = dtype
        self.arch = random_arch(seed)
        self.arch.update(layers=[1] * len(self.arch['layers']))
        self.model = self.make()
        self.sparsifier = StagedSparsifier(self.model, STEPS, group_lasso=1e-4)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.02, momentum=0.9)
        self.ema = ModelEmaV3(self.model, decay=0.5)
        self.masks = self.current_masks()

    def make(self, **options):
        return timm.create_model('condensenetv2', arch=self.arch, num_classes=3, **options).to(self.dtype)

    def current_masks(self):
        return {name: layer.mask.clone() for name, layer in self.sparsifier.layers.items()}

    def images(self, count=2):
        return torch.randn(count, 3, 32, 32, dtype=self.dtype)

    @rule(steps=st.integers(1, 3))
    def train(self, steps):
        self.model.train()
        for _ in range(steps):
            output = self.model(self.images())
            loss = output.square().mean() + self.sparsifier.regularization()
            self.optimizer.zero_grad()
            loss.backward()
            for layer in self.sparsifier.layers.values():
                assert not layer.conv.weight.grad[~layer.mask].any(), 'a pruned weight gets a gradient'
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.sparsifier.step()
            self.ema.update(self.model)

    @rule(progress=st.floats(0, 1))
    def jump(self, progress):
        self.sparsifier.set_progress(progress)

    @rule()
    def finish(self):
        self.sparsifier.set_progress(1.0)
        assert self.sparsifier.finished

    @rule(suffix=st.sampled_from(['pth', 'safetensors']))
    def save_and_resume(self, suffix):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f'x.{suffix}'
            save_checkpoint(self.model.state_dict(), path)
            state = find_state_dict(load_checkpoint(path))
        model = self.make()
        model.load_state_dict(state)
        optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
        optimizer.load_state_dict(self.optimizer.state_dict())
        sparsifier = StagedSparsifier(model, STEPS, group_lasso=1e-4)
        sparsifier.load_state_dict(self.sparsifier.state_dict())
        assert all(torch.equal(value, state[key]) for key, value in self.model.state_dict().items())
        ema = ModelEmaV3(model, decay=0.5)
        ema.module.load_state_dict(self.ema.module.state_dict())
        self.model, self.optimizer, self.sparsifier, self.ema = model, optimizer, sparsifier, ema

    @rule()
    def copy(self):
        twin = deepcopy(self.model).eval()
        self.model.eval()
        x = self.images()
        with torch.no_grad():
            assert torch.equal(twin(x), self.model(x))

    @rule()
    def average(self):
        self.ema.update(self.model)
        for name, layer in self.sparsifier.layers.items():
            averaged = self.ema.module.get_submodule(name)
            assert torch.equal(averaged.mask, layer.mask) and torch.equal(averaged.stage, layer.stage)
        self.make().load_state_dict(self.ema.module.state_dict())

    @rule()
    def condense(self):
        if not self.sparsifier.finished:
            before = {key: value.clone() for key, value in self.model.state_dict().items()}
            with pytest.raises(UnfinishedPruningError):
                condense(self.model, inplace=True)
            assert all(torch.equal(value, before[key]) for key, value in self.model.state_dict().items())
            return
        self.ema.update(self.model)
        for source in (self.model, self.ema.module):
            source = deepcopy(source).eval()
            deployed = condense(source)
            x = self.images()
            with torch.no_grad():
                expected = source(x)
                tolerance = 1e-4 if self.dtype == torch.float32 else 1e-10
                assert relative_difference(deployed(x), expected) < tolerance
            state = condense_state_dict(source.state_dict(), source)
            twin = self.make(deploy=True).eval()
            twin.load_state_dict(state)
            with torch.no_grad():
                assert torch.equal(twin(x), deployed(x))
            deployed.switch_to_deploy()

    @precondition(lambda self: self.exports and self.sparsifier.finished and self.dtype == torch.float32)
    @rule(opset=st.sampled_from([17, 20]))
    def export(self, opset):
        """By TorchScript or by ``torch.export``."""
        model = deepcopy(self.model).eval()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'x.onnx'
            export_onnx(condense(model), path, (3, 32, 32), batch=2, tolerance=1e-4, opset=opset)
            assert verify(model, path, (3, 32, 32), 1, batch_size=2).max_rel < 1e-4

    @invariant()
    def masks_are_those_of_their_stage(self):
        if not hasattr(self, 'model'):
            return
        for name, layer in self.sparsifier.layers.items():
            stage = int(layer.stage)
            units = layer.grouping.by_unit(layer.mask)
            assert 0 <= stage <= layer.num_stages
            assert bool((units == units[..., :1]).all()), 'a unit is half pruned'
            assert set(units[..., 0].sum(1).tolist()) == {alive_units(layer.num_units, layer.factor, stage)}
            assert not bool((layer.mask & ~self.masks[name]).any()), 'a pruned weight came back'
            assert bool(torch.isfinite(layer.conv.weight).all())
        self.masks = self.current_masks()

    @invariant()
    def it_computes(self):
        if hasattr(self, 'model'):
            self.model.eval()
            with torch.no_grad():
                assert bool(torch.isfinite(self.model(self.images(1))).all())


CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def test_a_models_life():
    options = settings(
        max_examples=6, stateful_step_count=12, deadline=None, derandomize=True, suppress_health_check=CHECKS
    )
    run_state_machine_as_test(Life, settings=options)


@pytest.mark.slow
def test_a_models_long_life():
    options = settings(max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=CHECKS)
    exporting = type('ExportingLife', (Life,), dict(exports=True))
    run_state_machine_as_test(exporting, settings=options)
