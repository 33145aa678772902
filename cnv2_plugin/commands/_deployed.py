"""What ``cnv2 deploy`` does alike for timm's and OpenMMLab's models: strict loading before, the report after."""

from ._output import print_table


def load_exactly(model, state_dict: dict, name: str, hint: str) -> None:
    """Load a state dict of the training form strictly.

    Raises:
        ValueError: it does not fit, or is condensed already; says where.
    """
    if any(key.endswith(('gather.index', 'scatter.index')) for key in state_dict):
        raise ValueError('the checkpoint is condensed already; deploy takes the trained checkpoint in training form.')
    own = model.state_dict()
    missing, unexpected = sorted(set(own) - set(state_dict)), sorted(set(state_dict) - set(own))
    wrong = sorted(key for key in set(own) & set(state_dict) if own[key].shape != state_dict[key].shape)
    for what, keys in (('lacks', missing), ('has unknown', unexpected), ('has other shapes for', wrong)):
        if keys:
            raise ValueError(
                f'the checkpoint does not fit {name}: it {what} {", ".join(keys[:3])}'
                f'{f" and {len(keys) - 3} more" if len(keys) > 3 else ""}; check {hint}.'
            )
    model.load_state_dict(state_dict)


def print_report(
    model, condensed, input_size, sizes: list[int], differences: list[float], lossy=(), title: str = 'Deployed'
) -> None:
    """Print what condensing changed, in figures of both forms."""
    from ..analysis import count_cost

    before, after = count_cost(model, input_size), count_cost(condensed, input_size)
    header = ['', 'training form', 'condensed', 'ONNX'][: len(sizes) + 1]
    rows = [
        ['parameters', f'{before.params:,}', f'{after.params:,}', ''],
        ['multiply-adds (M)', f'{before.mult_adds / 1e6:.2f}', f'{after.mult_adds / 1e6:.2f}', ''],
        ['file size (MB)', *(f'{size / 1e6:.3f}' for size in sizes)],
        ['max relative difference', '', *(f'{difference:.2e}' for difference in differences)],
        *lossy,
    ]
    print_table(title, header, [row[: len(header)] for row in rows])
