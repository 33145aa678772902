"""From a trained model to its deployed files: condense, verify, write; the files appear together or not at all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from torch import nn

from ..checkpoints.io import staged
from ..models.modes import in_eval
from .condense import ClassifierCost, classifier_cost, condense
from .verify import VerifyReport, check_takes, verify


@dataclass(frozen=True)
class Output:
    """Files, or a folder, written together: ``write`` takes the condensed model and a temporary path for each."""

    paths: tuple[Path, ...]
    write: Callable[..., Any]


@dataclass(frozen=True)
class Deployment:
    """What was verified and written.

    Attributes:
        model: the condensed model that the files hold.
        difference: largest relative difference between the given and the condensed model.
        reports: what writing each output returned; paths in them are temporary ones.
        loss: cost of the classifier's dropped inputs and the outputs without them, where some were dropped.
    """

    model: nn.Module
    difference: float
    reports: list[Any]
    loss: Optional[tuple[ClassifierCost, VerifyReport]]


def deploy(
    model: nn.Module,
    outputs: Sequence[Output],
    input_size: tuple[int, int, int],
    views: Mapping[str, Callable[[nn.Module], nn.Module]],
    tolerance: float = 1e-5,
    classifier_keep: Optional[float] = None,
) -> Deployment:
    """Condense a finished model, compare it with the given one, and write it; where anything raises, no file is there.

    ``views`` are the modules to compare by name, made of the given model, in eval mode and left as it is, and of the
    condensed one. See :func:`cnv2_plugin.deploy.condense` for ``classifier_keep``.
    """
    with staged(*(path for output in outputs for path in output.paths)) as temporaries:
        condensed = in_eval(condense(model))
        difference = 0.0
        for name, view in views.items():
            check_takes(view(model), input_size, type(model).__name__)
            report = verify(view(model), view(condensed), input_size, exact=True)
            report.check(tolerance, name)
            difference = max(difference, report.max_rel)
        loss = None
        if classifier_keep is not None:
            cost = classifier_cost(condensed, classifier_keep)
            whole, condensed = condensed, condense(condensed, classifier_keep=classifier_keep)
            loss = cost, verify(whole, condensed, input_size, num_inputs=8, batch_size=4)
        places = iter(temporaries)
        reports = [output.write(condensed, *(next(places) for _ in output.paths)) for output in outputs]
    return Deployment(condensed, difference, reports, loss)
