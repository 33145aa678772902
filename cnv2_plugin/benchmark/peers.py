"""Other networks to compare with: of each family the one whose multiply-adds are nearest."""

from torch import nn

from ..models.multiply_adds import count_mult_adds

PEERS: dict[str, tuple[str, ...]] = {
    'ShuffleNetV2': tuple(f'shufflenet_v2_x{width}' for width in ('0_5', '1_0', '1_5', '2_0')),
    'MobileNetV3': tuple(
        f'mobilenetv3_{width}' for width in ('small_050', 'small_075', 'small_100', 'large_075', 'large_100')
    ),
    'EfficientNet-Lite': ('efficientnet_lite0', 'efficientnet_lite1'),
    'GhostNetV2': ('ghostnetv2_100', 'ghostnetv2_130', 'ghostnetv2_160'),
    'GhostNet': ('ghostnet_050', 'ghostnet_100', 'ghostnet_130'),
}
"""Names of networks by family: ShuffleNetV2's are torchvision's, the others timm's."""


def nearest_peers(
    mult_adds: int, input_size: tuple[int, int, int] = (3, 224, 224), families: tuple[str, ...] = tuple(PEERS)
) -> dict[str, nn.Module]:
    """Of each family the network whose multiply-adds are nearest to a number, by name, with random weights."""
    unknown = [family for family in families if family not in PEERS]
    if unknown:
        raise ValueError(f'there are no peers {", ".join(unknown)}; choose from {", ".join(PEERS)}.')
    chosen = {}
    for family in families:
        made = {name: make_peer(name) for name in PEERS[family]}
        distance = {name: abs(_count(model, input_size, family) - mult_adds) for name, model in made.items()}
        name = min(distance, key=distance.get)
        chosen[name] = made[name]
    return chosen


def make_peer(name: str) -> nn.Module:
    """A network of torchvision (ShuffleNetV2) or timm with random weights, in eval mode."""
    if name.startswith('shufflenet'):
        import torchvision

        return getattr(torchvision.models, name)(weights=None).eval()
    import timm

    return timm.create_model(name).eval()


def _count(model: nn.Module, input_size: tuple[int, int, int], family: str) -> int:
    try:
        return count_mult_adds(model, input_size)
    except RuntimeError as error:
        size = 'x'.join(map(str, input_size))
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f'{family} does not take images of {size} ({reason}); give 3x224x224 or the like, or leave {family} out.'
        ) from error
