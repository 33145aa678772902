"""The callback inside Lightning's own trainer: whole, resumed, averaged."""

import pytest
import timm
import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from cnv2_plugin.layers import GroupSparseConv2d
from tests.scripts.test_run import ARCH

lightning = pytest.importorskip('lightning.pytorch')

from lightning.pytorch.callbacks import BackboneFinetuning, EMAWeightAveraging  # noqa: E402

from cnv2_plugin.toolkits.lightning import StagedSparsification  # noqa: E402


class Classifier(lightning.LightningModule):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.model = timm.create_model('condensenetv2', arch=ARCH, num_classes=3)

    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log('loss', self.training_step(batch, index))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def loader():
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(16) % 3), 2)


def trainer(folder, callbacks, **options):
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1)
    return lightning.Trainer(
        accelerator='cpu', default_root_dir=folder, callbacks=callbacks, accumulate_grad_batches=2, **quiet, **options
    )


def stages(model):
    return {int(m.stage) for m in model.modules() if isinstance(m, GroupSparseConv2d)}


def test_resumed_it_ends_where_the_whole_training_ends(tmp_path):
    options = dict(sparse_fraction=0.6, group_lasso=1e-2)
    whole = Classifier()
    callback = StagedSparsification(**options)
    whole_trainer = trainer(tmp_path, [callback], max_epochs=3, enable_checkpointing=False)
    whole_trainer.fit(whole, loader())
    assert callback.sparsifier.total_steps == callback.sparsifier.steps_done == 12
    assert stages(whole) == {2, 3}

    class StopAfterOne(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / 'part.ckpt')
            trainer.should_stop = True

    part = Classifier()
    trainer(tmp_path, [StagedSparsification(**options), StopAfterOne()], max_epochs=3).fit(part, loader())
    assert max(stages(part)) in (1, 2)
    rest = Classifier(seed=1)
    callback = StagedSparsification(**options)
    rest_trainer = trainer(tmp_path, [callback], max_epochs=3, enable_checkpointing=False)
    rest_trainer.fit(rest, loader(), ckpt_path=tmp_path / 'part.ckpt', weights_only=True)
    assert callback.sparsifier.steps_done == 12
    for key, value in whole.state_dict().items():
        assert torch.allclose(value, rest.state_dict()[key], atol=1e-6), key


def test_averaged_weights_have_the_masks(tmp_path):
    module, averaging = Classifier(), EMAWeightAveraging(decay=0.99)
    callbacks = [averaging, StagedSparsification()]
    trainer(tmp_path, callbacks, max_epochs=3, enable_checkpointing=False).fit(module, loader(), loader())
    copied = next(value for value in vars(averaging).values() if isinstance(value, AveragedModel)).module
    assert stages(copied) == stages(module) == {2, 3}
    masks = [m.mask for m in module.modules() if isinstance(m, GroupSparseConv2d)]
    theirs = [m.mask for m in copied.modules() if isinstance(m, GroupSparseConv2d)]
    assert all(torch.equal(a, b) for a, b in zip(masks, theirs))


def test_a_training_without_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match='total_steps is inf'):
        trainer(tmp_path, [StagedSparsification()], max_epochs=-1, enable_checkpointing=False).fit(
            Classifier(), loader()
        )


def test_a_backbone_that_thaws_later_is_pruned(tmp_path):
    class Finetuned(Classifier):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = self.model.stages, self.model.classifier

        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.05)

    module = Finetuned()
    callbacks = [BackboneFinetuning(unfreeze_backbone_at_epoch=1), StagedSparsification(start=0.4, sparse_fraction=0.8)]
    trainer(tmp_path, callbacks, max_epochs=3, enable_checkpointing=False).fit(module, loader())
    assert callbacks[1].sparsifier.steps_done == 12 and stages(module) == {2, 3}
    assert len(module.optimizers().param_groups) > 1
