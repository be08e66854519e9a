from .added_neck import AddedNeckHook, give_to_first_neck
from .backbone_check import BackboneCheckHook, check_channels
from .float32_boxes import Float32BoxesHook
from .fusing import FusingHook
from .plugin_check import check_plugins

__all__ = [
    'AddedNeckHook',
    'BackboneCheckHook',
    'Float32BoxesHook',
    'FusingHook',
    'check_channels',
    'check_plugins',
    'give_to_first_neck',
]
