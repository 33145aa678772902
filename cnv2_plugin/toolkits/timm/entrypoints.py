"""Entry points and default configurations made from the variants table."""

from functools import partial
from typing import Any, Callable

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from ...archs import VARIANTS, Arch, Variant, arch_from


def default_cfg(variant: Variant) -> dict[str, Any]:
    """timm's pretrained configuration of a variant."""
    mean, std = variant.stats
    return dict(
        url='',
        num_classes=variant.num_classes,
        input_size=variant.input_size,
        pool_size=tuple(size // 32 if size >= 224 else size // 4 for size in variant.input_size[1:]),
        crop_pct=variant.crop_pct,
        interpolation=variant.interpolation,
        mean=mean,
        std=std,
        first_conv='stem',
        classifier='classifier',
        license='mit',
    )


def register_variants(module: dict[str, Any], model_cls: type, arch_cls: type, names: list[str]) -> None:
    """Register one timm entry point for each variant name in ``module``.

    Args:
        module: ``globals()`` of the registering module.
        model_cls: timm model class.
        arch_cls: class of its shapes.
        names: timm names, keys of the variants table.
    """
    module['default_cfgs'] = {**module.get('default_cfgs', {}), **generate_default_cfgs({n: default_cfg(VARIANTS[n]) for n in names})}
    for name in names:
        _register(module, name, partial(_create, name, model_cls, arch_cls, default_arch=VARIANTS[name].arch))


def _create(name: str, model_cls: type, arch_cls: type, pretrained: bool = False, *, default_arch: Arch, **kwargs):
    arch = arch_from(arch_cls, kwargs.pop('arch', default_arch))
    return build_model_with_cfg(
        model_cls, name, pretrained, arch=arch, feature_cfg=dict(flatten_sequential=True), **kwargs
    )


def _register(module: dict[str, Any], name: str, create: Callable) -> None:
    def entry_point(pretrained: bool = False, **kwargs):
        return create(pretrained, **kwargs)

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__module__ = module['__name__']
    entry_point.__doc__ = f'``{name}`` of the variants table.'
    module[name] = register_model(entry_point)
