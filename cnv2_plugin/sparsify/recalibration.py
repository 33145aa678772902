"""Running statistics of batch normalisation, measured anew for the weights that a model has now."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrate_norms(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running statistics of batch normalisation by the plain average over some batches, in place.

    Running statistics lag behind the weights. Right after a pruning stage they belong to connections that are gone, and
    a test then says little about the weights; some forward passes mend that ("precise BN", arXiv 2105.07576, section 3;
    after pruning: EagleEye, arXiv 2007.02491, section 3.3). No weight changes, no gradient is computed. Normalisations
    that are frozen (in evaluation mode) stay as they are, dropout is off, and every mode is as before in the end. Under
    DDP every process measures its own batches and the first one's buffers are broadcast, as always.

    Args:
        model: in training mode.
        batches: what the model takes, such as ten training batches ``(N, C, H, W)``.

    Returns:
        Number of normalisations that were measured; without any, nothing is run.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    modes = {module: module.training for module in model.modules()}
    before = {norm: (norm.momentum, int(norm.get_buffer('num_batches_tracked'))) for norm in norms}
    try:
        model.eval()
        for i, batch in enumerate(batches if norms else ()):
            for norm in norms:
                norm.train()
                norm.momentum = 1 / (i + 1)
            model(batch)
    finally:
        for norm, (momentum, count) in before.items():
            norm.momentum = momentum
            norm.get_buffer('num_batches_tracked').fill_(count)
        for module, mode in modes.items():
            module.training = mode
    return len(norms)
