"""Adds to a trunk what timm expects of a model: a head, access to features, parameter groups."""

from typing import Any, Optional, Union

import torch
from timm.layers import SelectAdaptivePool2d, get_act_layer, get_norm_layer
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ...layers import SelectiveLinear, SqueezeExcite
from ...models.base import start


class TimmModel(nn.Module):
    """Adds timm's interface to a trunk with ``stem``, ``stages``, ``forward_stem`` and ``forward_final``.

    Args:
        arch: shape of the trunk.
        num_classes: classes; 0 leaves the classifier out.
        in_chans: input channels.
        global_pool: timm pooling type that keeps the width, or '' for none.
        drop_rate: dropout probability before the classifier.
        head_width: width of the linear layer between pooling and classifier (after squeeze-and-excitation and before
            hard-swish), or None for neither.
        classifier_keep: share of the classifier's inputs that it reads, with ``deploy=True`` only; see
            :func:`cnv2_plugin.deploy.condense`.
        **trunk_options: passed on to the trunk; ``act_layer`` and ``norm_layer`` may be timm's names, such as
            ``'silu'``.

    Attributes:
        first_conv: name of the convolution that reads the images.
        final_is_norm: whether the part after the last stage only normalises, keeping the width.
        stem_feature: stride and last module of a stem whose features are offered before those of the stages, or None.
        fused: in the native form, the module that computes everything in front of the classifier; else None. Set it to
            None to have ``forward`` call trunk and head one after the other, so that hooks on them run.
    """

    first_conv: str
    final_is_norm: bool
    stem_feature: Optional[tuple[int, str]] = None

    def __init__(
        self,
        arch,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        head_width: Optional[int] = None,
        classifier_keep: Optional[float] = None,
        **trunk_options,
    ) -> None:
        whole = classifier_keep is None or classifier_keep == 1
        if not whole and not trunk_options.get('deploy', False):
            raise ValueError(
                f'classifier_keep={classifier_keep} is for deploy=True; give it to condense() when training is done.'
            )
        for option, find in (('act_layer', get_act_layer), ('norm_layer', get_norm_layer)):
            if isinstance(name := trunk_options.get(option), str):
                try:
                    trunk_options[option] = find(name)
                except KeyError:
                    raise ValueError(
                        f'{option} is {name!r}, which timm does not know; give a class in its place.'
                    ) from None
        super().__init__(arch=arch, in_chans=in_chans, **trunk_options)
        dd = self._device_dtype()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.feature_info = [
            dict(num_chs=channels, reduction=stride, module=f'stages.{i}')
            for i, (channels, stride) in enumerate(zip(self.stage_channels, self.stage_strides))
        ]
        if self.stem_feature is not None:
            stride, module = self.stem_feature
            self.feature_info.insert(0, dict(num_chs=arch.stem_width, reduction=stride, module=module))
        self.head_hidden_size = head_width or self.num_features
        self.se_head, self.conv_head, self.act_head = nn.Identity(), nn.Identity(), nn.Identity()
        if head_width:
            self.se_head = SqueezeExcite(self.num_features, self.num_features // 16, **dd)
            self.conv_head = nn.Conv2d(self.num_features, head_width, 1, **dd)
            self.act_head = nn.Hardswish()
        self.head_drop = nn.Dropout(drop_rate)
        self.fused: Optional[nn.Module] = None
        self.global_pool = nn.Identity()
        self.reset_classifier(num_classes, global_pool)
        if not whole and num_classes > 0:
            self.classifier = SelectiveLinear.from_linear(self.classifier, classifier_keep)

    @torch.jit.ignore
    def _device_dtype(self) -> dict[str, Any]:
        weight = next(self.parameters())
        return dict(device=weight.device, dtype=weight.dtype)

    @torch.jit.ignore
    def on_condense(self) -> None:
        """Record the arguments that build the condensed form, which timm saves beside the weights."""
        super().on_condense()
        keep = dict(classifier_keep=self.classifier.keep) if isinstance(self.classifier, SelectiveLinear) else {}
        self._model_args = dict(getattr(self, '_model_args', {}), deploy=True, **keep)

    @torch.jit.ignore
    def parts(self) -> list[tuple[str, nn.Module]]:
        """The modules that ``forward`` runs one after the other, with their names: the trunk's, then the head's."""
        head = ('global_pool.pool', 'se_head', 'conv_head', 'act_head', 'flatten', 'head_drop', 'classifier')
        return [*super().parts(), *((name, self.get_submodule(name)) for name in head)]

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Name parameters without weight decay, besides the biases and norms that timm leaves out itself."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters for layer-wise learning rates: stem, then layers (stages if ``coarse``), then the rest."""
        blocks = r'^stages\.(\d+)' if coarse else r'^stages\.(\d+)\.layers\.(\d+)'
        return dict(stem=r'^stem', blocks=[(blocks, None), (rf'^{self.final_attribute}', (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each layer in the backward pass to save activation memory."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the classifier and, where given, the pooling.

        Raises:
            ValueError: ``global_pool`` changes the width, is '' with a classifier behind it, or is not the one that the
                native form computes with its head.
        """
        before = getattr(self.global_pool, 'pool_type', None)
        global_pool = before if global_pool is None else global_pool
        pool = self.global_pool if global_pool == before else SelectAdaptivePool2d(pool_type=global_pool)
        if self.fused is not None and global_pool != before:
            raise ValueError(
                f'global_pool={global_pool!r} does not fit this native form, which computes {before!r} with its head; '
                f'reset the classifier of the model before it is lowered.'
            )
        if pool.feat_mult() != 1:
            raise ValueError(f"global_pool={global_pool!r} changes the width; use 'avg', 'max', 'avgmax' or ''.")
        if num_classes > 0 and not global_pool:
            raise ValueError(
                f"global_pool='' leaves a map that no classifier fits; use it with num_classes=0, not {num_classes}."
            )
        if isinstance(getattr(self, 'classifier', None), SelectiveLinear):
            self._model_args = {k: v for k, v in getattr(self, '_model_args', {}).items() if k != 'classifier_keep'}
        self.num_classes = num_classes
        self.global_pool = pool
        self.flatten = nn.Flatten(1) if global_pool else nn.Identity()
        self.classifier = nn.Identity()
        if num_classes > 0:
            self.classifier = nn.Linear(self.head_hidden_size, num_classes, **self._device_dtype())
            nn.init.zeros_(self.classifier.bias)
        for module in (self.global_pool, self.flatten, self.classifier):
            module.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Optional[Union[int, list[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> Union[list[Tensor], tuple[Tensor, list[Tensor]]]:
        """Compute chosen features of ``feature_info``, and those of the whole trunk unless ``intermediates_only``.

        Args:
            x: images ``(N, C, H, W)``.
            indices: the last n features if int, all if None, else these.
            norm: apply the trunk's last normalisation, where it has one, to the last stage's features.
            stop_early: stop after the last chosen one.
            output_fmt: ``'NCHW'``.
            intermediates_only: return only the list of features.
        """
        assert output_fmt in ('NCHW',), 'Output shape must be NCHW.'
        before = 0 if self.stem_feature is None else 1
        last = len(self.stages) - 1 + before
        take_indices, max_index = feature_take_indices(last + 1, indices)
        intermediates = []
        x = self.forward_stem(x)
        if before and 0 in take_indices:
            intermediates.append(x)
        if torch.jit.is_scripting() or not stop_early:
            stages = self.stages
        else:
            stages = self.stages[: max_index + 1 - before]
        for i, stage in enumerate(stages, before):
            x = stage(x)
            if i in take_indices:
                intermediates.append(self.forward_final(x) if norm and self.final_is_norm and i == last else x)
        if intermediates_only:
            return intermediates
        if max_index == last or not stop_early:
            x = self.forward_final(x)
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: Union[int, list[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last chosen one; drop the head if asked, or if stages were dropped."""
        before = 0 if self.stem_feature is None else 1
        take_indices, max_index = feature_take_indices(len(self.stages) + before, indices)
        prune_end = max_index < len(self.stages) + before - 1
        self.keep_stages(max_index + 1 - before)
        if prune_norm or prune_end:
            setattr(self, self.final_attribute, nn.Identity())
            self.num_features = self.head_hidden_size = self.feature_info[max_index]['num_chs']
        if prune_head or prune_end:
            self.se_head, self.conv_head, self.act_head = nn.Identity(), nn.Identity(), nn.Identity()
            self.head_hidden_size = self.num_features
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to the trunk's features ``(N, num_features, H', W')``."""
        return self.forward_final(self.stages(self.forward_stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map features to logits ``(N, num_classes)``, or to the classifier's inputs if ``pre_logits``."""
        x = self.act_head(self.conv_head(self.se_head(self.global_pool(x))))
        x = self.head_drop(self.flatten(x))
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, num_classes)``."""
        if self.fused is not None:
            features = self.fused(x) if torch.jit.is_scripting() else start(self.fused, x, self)
            return self.classifier(features.flatten(1))
        return self.forward_head(self.forward_features(x))
