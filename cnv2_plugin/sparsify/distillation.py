"""Learning from a network that was never pruned, by its logits."""

from torch import Tensor
from torch.nn import functional as F


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """Measure the divergence of the softened predictions from those of a teacher (arXiv 1503.02531, section 2).

    The Kullback-Leibler divergence at the temperature, times its square so that gradients keep their size. Add it to
    the loss with a weight; compute the teacher's logits in evaluation mode and under ``torch.no_grad()``.

    Args:
        logits: of the network that is trained, ``(N, classes)``.
        teacher_logits: of the teacher for the same images, ``(N, classes)``.
        temperature: softens both; above 0.

    Returns:
        A scalar, the mean over the images.

    Raises:
        ValueError: if the shapes differ, or the temperature is out of range.

    Example:
        >>> loss = criterion(logits, targets) + distillation_loss(logits, teacher(images))
    """
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f'the logits have the shape {tuple(logits.shape)} but those of the teacher {tuple(teacher_logits.shape)}; '
            f'give logits of the same images and classes.'
        )
    if temperature <= 0:
        raise ValueError(f'temperature is {temperature}; it takes a number above 0.')
    ours, theirs = (F.log_softmax(x.float() / temperature, 1) for x in (logits, teacher_logits.detach()))
    return F.kl_div(ours, theirs, reduction='batchmean', log_target=True) * temperature**2
