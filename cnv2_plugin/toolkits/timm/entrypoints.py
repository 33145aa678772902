"""Makes timm's entry points and default configurations from the table of variants."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from ...archs import VARIANTS, Variant, arch_from, variants_of
from .pretrained import filter_checkpoint, forget_weights, with_weights


def default_cfg(variant: Variant, model_cls: type) -> dict[str, Any]:
    """Make timm's pretrained configuration of a variant."""
    mean, std = variant.stats
    same = ('url', 'num_classes', 'input_size', 'crop_pct', 'interpolation')
    pool_size = tuple(size // 32 if size >= 224 else size // 4 for size in variant.input_size[1:])
    named = dict(first_conv=model_cls.first_conv, classifier='classifier', license='mit')
    return dict({name: getattr(variant, name) for name in same}, pool_size=pool_size, mean=mean, std=std, **named)


def register_family(
    module: dict[str, Any], model_cls: type, family: str, custom: str, like: str, **fixed_fields: Any
) -> None:
    """Register one timm entry point for each variant of a family, and one for shapes of the user's own.

    Args:
        module: ``globals()`` of the registering module.
        model_cls: timm model class.
        family: family in the variants table.
        custom: name of the entry point that is made for ``arch=dict(...)``.
        like: variant whose shape and configuration ``custom`` has unless told otherwise.
        **fixed_fields: fields of the shape that make the family what it is; a given ``arch`` may leave them out.
    """
    templates = {variant.name: variant for variant in variants_of(family).values()}
    templates[custom] = replace(VARIANTS[like], name=custom, url='', weights_page='')
    made = generate_default_cfgs({name: default_cfg(variant, model_cls) for name, variant in templates.items()})
    module.setdefault('default_cfgs', {}).update(made)
    for name, variant in templates.items():
        _register(module, name, variant, model_cls, fixed_fields)


def _register(module: dict[str, Any], name: str, variant: Variant, model_cls: type, fixed_fields: dict) -> None:
    def entry_point(pretrained: bool = False, **kwargs):
        given = kwargs.pop('arch', None)
        given = variant.arch if given is None else given
        arch = arch_from(type(variant.arch), {**fixed_fields, **given} if isinstance(given, Mapping) else given)
        for field, value in fixed_fields.items():
            if getattr(arch, field) != value:
                given = f'{field}={getattr(arch, field)!r}'
                raise ValueError(f'{name} is made with {field}={value!r}, but arch has {given}.')
        features = arch.num_stages + (model_cls.stem_feature is not None)
        feature_cfg = dict(out_indices=tuple(range(features)), flatten_sequential=True)
        if pretrained:
            kwargs = with_weights(variant, kwargs)
        options = dict(arch=arch, feature_cfg=feature_cfg, pretrained_filter_fn=filter_checkpoint, **kwargs)
        model = build_model_with_cfg(model_cls, name, pretrained, **options)
        forget_weights(model)
        return model

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__module__ = module['__name__']
    entry_point.__doc__ = f'``{name}`` of the variants table.'
    module[name] = register_model(entry_point)
