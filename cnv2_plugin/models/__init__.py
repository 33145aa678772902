"""Trunks in plain PyTorch; the toolkits' classes inherit them and add heads or outputs."""

from .condensenet import CondenseNetTrunk
from .shufflenet import ShuffleNetTrunk

__all__ = ['CondenseNetTrunk', 'ShuffleNetTrunk']
