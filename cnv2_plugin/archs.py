"""Every variant of every family in one table: the only place where a width is written.

Sources: CondenseNetV2 (arXiv 2104.04382, tables 1, 3, 5), CondenseNet (arXiv 1711.09224, tables 1, 3, 4) and
ShuffleNetV2 (arXiv 1807.11164, tables 5, 8), with the exact counts of the authors' releases.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Optional, TypeVar, Union

IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR_STATS = ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616))


@dataclass(frozen=True)
class CondenseNetArch:
    """Shape of a CondenseNet or CondenseNetV2.

    Attributes:
        layers: dense layers per block.
        growth: features that each layer of a block adds (growth rate ``k``).
        groups_1x1: groups ``G`` of the learned group convolutions; divides ``bottleneck * k``.
        groups_3x3: groups of the 3x3 convolutions; divides ``k``.
        groups_sfr: groups ``G`` of sparse feature reactivation, dividing ``k``; 0 leaves it out (CondenseNet).
        condense_factor: ``C`` of the learned group convolutions.
        sparse_factor: ``S`` of sparse feature reactivation.
        bottleneck: the learned group convolution makes ``bottleneck * k`` features.
        se_from: first block (from 1) with squeeze-and-excitation, or None.
        se_reduction: its hidden width is ``k // se_reduction``.
        hswish_from: first block (from 1) with hard-swish in place of ReLU, or None.
        head_width: width of the linear layer before the classifier, or None to leave it and its
            squeeze-and-excitation out.
        stem_stride: stride of the first convolution.
    """

    layers: tuple[int, ...]
    growth: tuple[int, ...]
    groups_1x1: int = 8
    groups_3x3: int = 8
    groups_sfr: int = 8
    condense_factor: int = 8
    sparse_factor: int = 8
    bottleneck: int = 4
    se_from: Optional[int] = None
    se_reduction: int = 1
    hswish_from: Optional[int] = None
    head_width: Optional[int] = None
    stem_stride: int = 2

    def __post_init__(self) -> None:
        _per_stage(self, 'layers', 'growth')
        factors = ('condense_factor', 'sparse_factor', 'bottleneck', 'se_reduction', 'stem_stride')
        _check_counts(self, 'groups_1x1', 'groups_3x3', *factors)
        if not isinstance(self.groups_sfr, int) or self.groups_sfr < 0:
            raise ValueError(f'arch has groups_sfr={self.groups_sfr!r}; it takes a whole number, 0 for none.')
        _check_counts(self, 'se_from', 'hswish_from', 'head_width', optional=True)
        for k in self.growth:
            for name, channels in (('groups_3x3', k), ('groups_sfr', k), ('groups_1x1', self.bottleneck * k)):
                groups = getattr(self, name)
                if groups and channels % groups:
                    raise ValueError(
                        f'arch has {name}={groups}, which does not divide {channels} channels of a block with '
                        f'growth {k}; choose a growth that is a multiple of it, or another {name}.'
                    )

    @property
    def num_stages(self) -> int:
        """Number of dense blocks."""
        return len(self.layers)

    def smallest_input(self, num_stages: int) -> int:
        """Height and width of images that leave one pixel after the last pool of so many stages."""
        return self.stem_stride * (2 ** (num_stages - 1) - 1) + 1


@dataclass(frozen=True)
class ShuffleNetArch:
    """Shape of a ShuffleNetV2, with or without sparse feature reactivation.

    Attributes:
        channels: output channels of the three stages.
        repeats: units per stage, the first of which downsamples.
        stem_width: channels of the first convolution.
        final_width: channels of the last 1x1 convolution.
        with_sfr: reactivate the untouched half in every unit that keeps the size.
        max_groups: ``G`` of a stage is the largest divisor of its branch width that is at most this.
        sparse_factor: ``S`` of sparse feature reactivation.
    """

    channels: tuple[int, ...]
    repeats: tuple[int, ...] = (4, 8, 4)
    stem_width: int = 24
    final_width: int = 1024
    with_sfr: bool = True
    max_groups: int = 8
    sparse_factor: int = 8

    def __post_init__(self) -> None:
        _per_stage(self, 'channels', 'repeats')
        if any(c % 2 for c in self.channels):
            raise ValueError(f'arch has channels={self.channels}; each stage is split in halves, so give even numbers.')
        _check_counts(self, 'stem_width', 'final_width', 'max_groups', 'sparse_factor')

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return len(self.channels)

    def smallest_input(self, num_stages: int) -> int:
        """Height and width of the smallest images: 1, as every convolution and pool is padded."""
        return 1


Arch = Union[CondenseNetArch, ShuffleNetArch]
Shape = TypeVar('Shape', CondenseNetArch, ShuffleNetArch)


@dataclass(frozen=True)
class Published:
    """Figures of the papers: parameters after pruning and the authors' multiply-adds, both in millions.

    Attributes:
        params: parameters, in millions.
        mult_adds: multiply-adds in the authors' way of counting, in millions.
        top1_error: top-1 error in percent (ImageNet, or CIFAR-10).
        source: where it stands.
        halved_classifier: counted with half of the classifier's inputs dropped (CondenseNet on ImageNet).
        note: why our count differs, where it does by more than 2 percent.
    """

    params: float
    mult_adds: float
    top1_error: Optional[float]
    source: str
    halved_classifier: bool = False
    note: str = ''


@dataclass(frozen=True)
class Variant:
    """A named network: its shape, its input, and what was published about it.

    Attributes:
        name: name in timm.
        family: OpenMMLab class name.
        key: the ``arch`` (or widen factor) that the OpenMMLab class takes.
        arch: shape.
        published: the papers' figures, or None.
        num_classes: classes of the published model.
        input_size: ``(C, H, W)`` of the published model.
        crop_pct: share of the resized image that the centre crop keeps.
        interpolation: of the evaluation resize.
        stats: mean and standard deviation of the input per channel.
        url: direct address of released weights, or ''.
        weights_page: page for people where released weights are, or ''.
    """

    name: str
    family: str
    key: Union[str, float]
    arch: Arch
    published: Optional[Published] = None
    num_classes: int = 1000
    input_size: tuple[int, int, int] = (3, 224, 224)
    crop_pct: float = 0.875
    interpolation: str = 'bilinear'
    stats: tuple = IMAGENET_STATS
    url: str = ''
    weights_page: str = ''


def arch_from(cls: type[Shape], arch: Union[Shape, Mapping[str, Any]]) -> Shape:
    """Make a shape from a dict of its fields, or return it as it is.

    Raises:
        ValueError: a field is unknown or missing, or a value does not fit.
        TypeError: neither a shape nor a dict.
    """
    if isinstance(arch, cls):
        return arch
    if not isinstance(arch, Mapping):
        raise TypeError(f'arch is a {type(arch).__name__}; it takes a {cls.__name__}, or a dict of its fields.')
    known = [f.name for f in fields(cls)]
    unknown = sorted(set(arch) - set(known))
    if unknown:
        raise ValueError(f'arch has unknown fields {", ".join(unknown)}; it takes {", ".join(known)}.')
    required = ('layers', 'growth') if cls is CondenseNetArch else ('channels',)
    missing = [name for name in required if name not in arch]
    if missing:
        raise ValueError(f'arch lacks {" and ".join(missing)}; give one number a stage.')
    return cls(**arch)


def find_variant(name: str) -> Variant:
    """The variant of that timm name.

    Raises:
        ValueError: there is none; names the closest.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    raise ValueError(f'There is no variant {name!r}; did you mean {", ".join(closest(name, VARIANTS))}?')


def closest(name: str, names: Iterable[str]) -> list[str]:
    """The three names that are most like one that is none of them; all, in their order, of up to five."""
    from difflib import get_close_matches

    names = list(names)
    return names if len(names) <= 5 else get_close_matches(name, names, n=3, cutoff=0.0)


def variants_of(family: str) -> dict[Union[str, float], Variant]:
    """Variants of an OpenMMLab class by the key it takes."""
    return {v.key: v for v in VARIANTS.values() if v.family == family}


def _per_stage(arch: Arch, first: str, second: str) -> None:
    """Make tuples of two fields that hold a number for each stage; raise where they do not fit."""
    for name in (first, second):
        values = getattr(arch, name)
        values = (values,) if isinstance(values, int) else tuple(values)
        if not values or any(not isinstance(v, int) or v < 1 for v in values):
            raise ValueError(f'arch has {name}={values!r}; it takes whole numbers of at least 1, one a stage.')
        object.__setattr__(arch, name, values)
    given, other = getattr(arch, first), getattr(arch, second)
    if len(given) != len(other):
        raise ValueError(f'arch has {first}={given} but {second}={other}; give one number a stage in both.')


def _check_counts(arch: Any, *names: str, optional: bool = False) -> None:
    for name in names:
        value = getattr(arch, name)
        if not (optional and value is None) and (not isinstance(value, int) or value < 1):
            accepted = 'a whole number of at least 1' + (', or None' if optional else '')
            raise ValueError(f'arch has {name}={value!r}; it takes {accepted}.')


def _published(figures: tuple, source: str, **more: Any) -> Published:
    params, mult_adds, top1_error = figures
    return Published(params, mult_adds, top1_error, source, **more)


def _v2(key: str, layers: tuple, growth: tuple, groups: int, head_width: int, *published: Any, **more: Any) -> Variant:
    stages = dict(se_from=4, hswish_from=3, head_width=head_width)
    arch = CondenseNetArch(layers, growth, groups, groups, groups, groups, groups, **stages)
    figures = _published(published, 'arXiv 2104.04382')
    return Variant(f'condensenetv2_{key}', 'CondenseNetV2', key, arch, figures, **more)


def _v1(groups: int, *published: Any, page: str) -> Variant:
    arch = CondenseNetArch((4, 6, 8, 10, 8), (8, 16, 32, 64, 128), groups, groups, 0, groups)
    figures = _published(published, 'arXiv 1711.09224', halved_classifier=True)
    return Variant(f'condensenet_74_g{groups}', 'CondenseNet', f'74-g{groups}', arch, figures, weights_page=page)


def _cifar(version: str, depth: int, layers: int, *published: Any) -> Variant:
    v2 = version == 'V2'
    factor = 8 if v2 else 4
    arch = CondenseNetArch((layers,) * 3, (8, 16, 32), factor, 4, 8 if v2 else 0, factor, stem_stride=1)
    source, note = ('arXiv 2104.04382', _CIFAR_NOTE) if v2 else ('arXiv 1711.09224', '')
    return Variant(
        f'condensenet{version.lower()}_{depth}_cifar', f'CondenseNet{version}', f'{depth}-cifar', arch,
        _published(published, source, note=note), 10, (3, 32, 32), 1.0, stats=CIFAR_STATS,
    )  # fmt: skip


def _shufflenet(width: float, channels: tuple, final_width: int, *published: Any, note: str = '') -> list[Variant]:
    name, figures = f'shufflenetv2_x{str(width).replace(".", "_")}', _published(published, _SHUFFLE, note=note)
    plain = ShuffleNetArch(channels, final_width=final_width, with_sfr=False)
    return [
        Variant(f'sfr_{name}', 'SFRShuffleNetV2', width, ShuffleNetArch(channels, final_width=final_width)),
        Variant(name, 'ShuffleNetV2', width, plain, figures),
    ]


_SHUFFLE = 'arXiv 1807.11164, table 8'
_DRIVE = 'https://drive.google.com/file/d/'
_DROPBOX = 'https://www.dropbox.com/s/'
_CIFAR_NOTE = (
    'the exact CIFAR setting is not public; this reconstruction meets the multiply-adds, '
    'the published parameters must contain squeeze-and-excitation and a wider head'
)

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        _v2('a', (1, 1, 4, 6, 8), (8, 8, 16, 32, 64), 8, 828, 2.0, 46, 35.6, interpolation='bicubic',
            weights_page=_DRIVE + '1fhHeAGkdZnOEgv9f-IUCy_uNfc-QHcZ_/view'),
        _v2('b', (2, 4, 6, 8, 6), (6, 12, 24, 48, 96), 6, 1024, 3.6, 146, 28.1, interpolation='bicubic',
            weights_page=_DRIVE + '1xFR3GcV1tsGq4tHhPS50XCW7AMnfWs6E/view'),
        _v2('c', (4, 6, 8, 10, 8), (8, 16, 32, 64, 128), 8, 1024, 6.1, 309, 24.1,
            url='https://cloud.tsinghua.edu.cn/f/4e4a5246fc6249829ab0/?dl=1',
            weights_page=_DRIVE + '12efJqELir4tzPMP-gdsH3Kl6kc5WeJgf/view'),
        _cifar('V2', 110, 12, 0.48, 41, 4.65),
        _cifar('V2', 146, 16, 0.78, 62, 4.35),
        _v1(4, 4.8, 529, 26.2, page=_DROPBOX + 'sj26rm4so3uhdmg/converted_condensenet_4.pth.tar?dl=1'),
        _v1(8, 2.9, 274, 29.0, page=_DROPBOX + 'aj1xpd6zcnclous/converted_condensenet_8.pth.tar?dl=1'),
        _cifar('', 50, 8, 0.22, 28.6, 6.22),
        _cifar('', 74, 12, 0.41, 51.9, 5.28),
        _cifar('', 86, 14, 0.52, 65.8, 5.06),
        _cifar('', 98, 16, 0.65, 81.3, 4.83),
        _cifar('', 110, 18, 0.79, 98.2, 4.63),
        _cifar('', 122, 20, 0.95, 116.7, 4.48),
        *_shufflenet(0.5, (48, 96, 192), 1024, 1.4, 41, 39.7, note='published rounded; torchvision has 1,366,792 too'),
        *_shufflenet(1.0, (116, 232, 464), 1024, 2.3, 146, 30.6),
        *_shufflenet(1.5, (176, 352, 704), 1024, 3.5, 299, 27.4),
        *_shufflenet(2.0, (244, 488, 976), 2048, 7.4, 591, 25.1),
    )
}  # fmt: skip
