"""Refuses weights of the wrong form, which mmengine would skip with a warning."""

from torch import nn

from ...layers import GroupSparseConv2d
from ...layers.state_dicts import state_dict_faults


class StrictForm(nn.Module):
    """Raises if weights of a training form are loaded into a deployed module, or the reverse.

    mmengine loads with ``strict=False`` and only logs tensors that do not fit, so that a test would run on random
    weights.
    """

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        faults = [
            fault
            for name, layer in self.named_modules()
            if isinstance(layer, GroupSparseConv2d)
            for fault in state_dict_faults(layer, state_dict, f'{prefix}{name}.')
        ]
        if faults:
            more = f' The same holds for {len(faults) - 1} more layers.' if len(faults) > 1 else ''
            raise ValueError(f'{faults[0]}{more}')
        super()._load_from_state_dict(state_dict, prefix, *args)
