"""Other networks to compare with: of each family the one whose multiply-adds are nearest."""

from collections.abc import Callable

from torch import nn

from ..models.multiply_adds import count_mult_adds


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        return getattr(torchvision.models, name)(weights=None)

    return make


def _timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name)

    return make


PEERS: dict[str, dict[str, Callable[[], nn.Module]]] = {
    'ShuffleNetV2': {
        f'shufflenet_v2_x{width}': _torchvision(f'shufflenet_v2_x{width}') for width in ('0_5', '1_0', '1_5', '2_0')
    },
    'MobileNetV3': {
        f'mobilenetv3_{width}': _timm(f'mobilenetv3_{width}')
        for width in ('small_050', 'small_075', 'small_100', 'large_075', 'large_100')
    },
    'EfficientNet-Lite': {f'efficientnet_lite{size}': _timm(f'efficientnet_lite{size}') for size in (0, 1)},
    'GhostNetV2': {f'ghostnetv2_{width}': _timm(f'ghostnetv2_{width}') for width in ('100', '130', '160')},
    'GhostNet': {f'ghostnet_{width}': _timm(f'ghostnet_{width}') for width in ('050', '100', '130')},
}


def nearest_peers(
    mult_adds: int, input_size: tuple[int, int, int] = (3, 224, 224), families: tuple[str, ...] = tuple(PEERS)
) -> dict[str, nn.Module]:
    """Of each family the network with the nearest multiply-adds, by name, with random weights.

    Args:
        mult_adds: multiply-adds to come near to.
        input_size: ``(C, H, W)``.
        families: which families, keys of ``PEERS``.

    Raises:
        ValueError: an unknown family, or images that a family does not take.
    """
    unknown = [family for family in families if family not in PEERS]
    if unknown:
        raise ValueError(f'there are no peers {", ".join(unknown)}; choose from {", ".join(PEERS)}.')
    chosen = {}
    for family in families:
        made = {name: make().eval() for name, make in PEERS[family].items()}
        distance = {name: abs(_count(model, input_size, family) - mult_adds) for name, model in made.items()}
        name = min(distance, key=distance.get)
        chosen[name] = made[name]
    return chosen


def _count(model: nn.Module, input_size: tuple[int, int, int], family: str) -> int:
    try:
        return count_mult_adds(model, input_size)
    except RuntimeError as error:
        size = 'x'.join(map(str, input_size))
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f'{family} does not take images of {size} ({reason}); give 3x224x224 or the like, or leave {family} out.'
        ) from error
