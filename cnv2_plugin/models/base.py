"""What every trunk shares: deployment, per-stage features and gradient checkpointing."""

from collections.abc import Iterator

from torch import nn

from ..layers import GroupSparseConv2d


class DeployMixin:
    """Adds ``switch_to_deploy`` to a model made of group-sparse layers."""

    deploy: bool

    def switch_to_deploy(self) -> None:
        """Turn every masked layer into its group-convolution form, in place; does nothing the second time.

        Raises:
            UnfinishedPruningError: pruning stages are left; nothing is changed then.
        """
        from ..deploy.condense import condense

        condense(self, inplace=True)

    def sparse_layers(self) -> Iterator[GroupSparseConv2d]:
        """The group-sparse layers in forward order."""
        return (m for m in self.modules() if isinstance(m, GroupSparseConv2d))


def init_weights(module: nn.Module) -> None:
    """Initialise as the papers do: convolutions N(0, sqrt(2 / (kh kw O))), normalisation 1 and 0, biases 0.

    Reactivation starts with a BN weight of 1 too: with weight and bias 0 before a ReLU it would never learn.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
