"""From a trained model to its deployed files: condense, verify, write; the files appear together or not at all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional, Union

from torch import nn

from ..checkpoints.io import staged
from ..models.modes import in_eval
from .condense import ClassifierCost, classifier_cost, condense
from .export import ExportReport, export_onnx
from .verify import VerifyReport, verify


@dataclass(frozen=True)
class Deployment:
    """What was verified and written.

    Attributes:
        model: the condensed model that the files hold.
        difference: largest relative difference between the trained and the condensed model.
        export: report on the ONNX file, if one was asked for; its path is a temporary one.
        loss: cost of the classifier's dropped inputs and the outputs without them, where some were dropped.
    """

    model: nn.Module
    difference: float
    export: Optional[ExportReport]
    loss: Optional[tuple[ClassifierCost, VerifyReport]]


def deploy(
    model: nn.Module,
    files: Sequence[Path],
    write: Callable[..., None],
    input_size: tuple[int, int, int],
    views: Mapping[str, Callable[[nn.Module], nn.Module]],
    onnx: Optional[Path] = None,
    batch: Union[int, Literal['dynamic']] = 'dynamic',
    tolerance: float = 1e-5,
    metadata: Optional[dict[str, Any]] = None,
    classifier_keep: Optional[float] = None,
) -> Deployment:
    """Condense a finished model, compare it with the trained one, and write it.

    Args:
        model: in eval mode; left as it is.
        files: to write.
        write: called with the condensed model and a temporary path for each of ``files``; what it raises is raised.
        input_size: ``(C, H, W)``.
        views: modules to compare, made of the trained and of the condensed model, by name. The first one is exported.
        onnx: ONNX file to write too.
        batch: of the ONNX file, ``'dynamic'`` or fixed.
        tolerance: largest relative difference that is accepted.
        metadata: stored in the ONNX file.
        classifier_keep: share of the classifier's inputs to keep, see :func:`cnv2_plugin.deploy.condense`.

    Raises:
        UnfinishedPruningError: pruning is not finished.
        VerificationError: the condensed model or the ONNX file differs by more than ``tolerance``.
        OSError: a file cannot be written.
    """
    with staged(*files, *([onnx] if onnx else [])) as temporaries:
        condensed = in_eval(condense(model))
        difference = 0.0
        for name, view in views.items():
            report = verify(view(model), view(condensed), input_size)
            report.check(tolerance, name)
            difference = max(difference, report.max_rel)
        loss = None
        if classifier_keep is not None:
            cost = classifier_cost(condensed, classifier_keep)
            whole, condensed = condensed, condense(condensed, classifier_keep=classifier_keep)
            loss = cost, verify(whole, condensed, input_size, num_inputs=8, batch_size=4)
        write(condensed, *temporaries[: len(files)])
        export = None
        if onnx:
            exported = next(iter(views.values()))(condensed)
            export = export_onnx(exported, temporaries[-1], input_size, batch, tolerance=tolerance, metadata=metadata)
    return Deployment(condensed, difference, export, loss)
