"""OpenMMLab backbones, necks and hooks, registered in mmengine's root registries.

mmpretrain, mmdet and every other library with mmengine registries finds them by bare name through its parent registry.
Only mmengine is imported here; mmcv, mmdet and mmpretrain are imported when something that needs them is built.
"""

from .condensenet import CondenseNet, CondenseNetV2
from .config_names import register_configs
from .deploy_files import SwitchToDeployHook
from .distillation_hook import DistillationHook
from .necks import SEGlobalPooling, SFRTopDown, build_sfr_fpn
from .onnx_detector import OnnxDetector, OnnxSegmenter
from .safe_loading import allow_mmengine_checkpoints
from .shufflenet import SFRShuffleNetV2
from .sparsification_hook import CondensedTrainingHook, PackedTrainingHook, StagedSparsificationHook
from .surgery_hook import LearnedGroupSurgeryHook, build_learned_group_model

__all__ = [
    'CondenseNet',
    'CondenseNetV2',
    'CondensedTrainingHook',
    'DistillationHook',
    'LearnedGroupSurgeryHook',
    'OnnxDetector',
    'OnnxSegmenter',
    'PackedTrainingHook',
    'SEGlobalPooling',
    'SFRShuffleNetV2',
    'SFRTopDown',
    'StagedSparsificationHook',
    'SwitchToDeployHook',
    'build_learned_group_model',
    'build_sfr_fpn',
]

allow_mmengine_checkpoints()
register_configs()
