"""Surgery on a network that is trained already: every arm starts from the same weights and is fine-tuned alike."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

import torch
from torch import nn

from cnv2_plugin.analysis import count_cost
from cnv2_plugin.checkpoints import load_checkpoint, save_checkpoint
from cnv2_plugin.deploy import condense, verify

from . import data as image_sets
from .arms import ARMS, INPUT_SIZE, Options
from .data import Data
from .recipe import Recipe
from .runs import Place, complete, fingerprint, run_folder
from .train import accuracy, fit, unit_masks


@dataclass(frozen=True)
class SurgeryRun:
    """The pretraining, or one arm that goes on from it.

    Attributes:
        arm: of :data:`ARMS`; ``'pretrained'`` without ``start``.
        recipe: how it is trained.
        images: name of the image set.
        train_images: at most so many to train on; the pretraining takes the first half of them.
        test_images: at most so many to test on.
        options: network and surgery.
        start: the pretraining.
        teacher: the arm whose network it learns from, where its recipe distils.
    """

    arm: str
    recipe: Recipe
    images: str
    train_images: int
    test_images: int
    options: Options = field(default_factory=Options)
    start: Optional['SurgeryRun'] = None
    teacher: Optional['SurgeryRun'] = None

    @property
    def name(self) -> str:
        """Arm and settings, so that figures of other settings stay beside these."""
        return f'{self.arm}_{fingerprint(self)}'

    def settings(self) -> dict[str, Any]:
        """Plain values; a teacher only where there is one, so that older runs stay what they are."""
        settings = dict(
            arm=self.arm, recipe=self.recipe.settings(), images=self.images, train_images=self.train_images,
            test_images=self.test_images, options=self.options.settings(), start=self.start and self.start.settings(),
        )  # fmt: skip
        return {**settings, 'teacher': self.teacher.settings()} if self.teacher else settings

    def data(self, place: Place) -> Data:
        """What it trains and tests on."""
        found = image_sets.load(self.images, self.train_images, self.test_images, place.fashion_mnist)
        return found if self.start else replace(found, train=found.train.first(len(found.train) // 2))

    def perform(self, seed: int, folder: Path, place: Place) -> dict[str, Any]:
        """Train and test.

        Raises:
            RuntimeError: the pruned network costs other than what surgery predicted.
            VerificationError: the condensed network does not compute what the masked one does.
        """
        data = self.data(place)
        torch.manual_seed(seed)
        model = self.start.trained(seed, place) if self.start else self.options.build()
        predicted = self.operate(model) if self.start else count_cost(model, INPUT_SIZE).mult_adds
        title = f'{self.images}, {ARMS[self.arm].label if self.start else "pretraining"}, seed {seed}'
        history = fit(
            model, data, self.recipe, seed, folder / 'checkpoint.pth', title=title,
            teacher=self.teacher.trained(seed, place) if self.teacher else None, device=place.device,
        )  # fmt: skip
        counted = count_cost(model, INPUT_SIZE).mult_adds_pruned
        if counted != predicted:
            raise RuntimeError(f'{title}: {counted} multiply-adds are counted where {predicted} were predicted.')
        save_checkpoint(model.state_dict(), folder / 'model.pth', dict(name=self.name))
        steps = self.recipe.epochs * (len(data.train) // self.recipe.batch_size)
        return dict(
            train_images=len(data.train), test_images=len(data.test), steps=steps, **evaluated(model, data),
            seconds=round(sum(row['seconds'] for row in history), 1),
        )  # fmt: skip

    def trained(self, seed: int, place: Place) -> nn.Module:
        """The masked network of a run, which is trained where it has to be, and again where its weights are gone."""
        complete(self, seed, place)
        folder = run_folder(self, seed, place)
        if not (folder / 'model.pth').exists():
            self.perform(seed, folder, place)
        model = self.untrained()
        model.load_state_dict(load_checkpoint(folder / 'model.pth')['state_dict'])
        return model.eval()

    def untrained(self) -> nn.Module:
        """The network with its surgery, and random weights."""
        model = self.options.build()
        if self.start:
            self.operate(model)
        return model.eval()

    def operate(self, model: nn.Module) -> int:
        """Do the surgery of the arm, in place; returns the multiply-adds that it predicts."""
        return ARMS[self.arm].operate(model, self.options)


def evaluated(model: nn.Module, data: Data) -> dict[str, Any]:
    """Test accuracy in percent and cost of a trained network, condensed.

    Raises:
        VerificationError: the condensed network does not compute what the masked one does.
        RuntimeError: masked and condensed network do not cost the same.
    """
    condensed = condense(model) if unit_masks(model) else model
    report = verify(model, condensed, INPUT_SIZE, exact=True)
    report.check(1e-5, 'the condensed network')
    cost = count_cost(condensed, INPUT_SIZE)
    if count_cost(model, INPUT_SIZE).mult_adds_pruned != cost.mult_adds:
        raise RuntimeError('the condensed network has other multiply-adds than its masks leave.')
    return dict(
        accuracy=round(accuracy(condensed, data, data.test), 2), mult_adds=cost.mult_adds, params=cost.params,
        condensed_difference=report.max_rel,
    )  # fmt: skip
