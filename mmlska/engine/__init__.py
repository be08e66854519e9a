from .hooks.added_neck_hook import AddedNeckHook, give_to_first_neck
from .hooks.backbone_check_hook import BackboneCheckHook, check_channels
from .hooks.float32_boxes_hook import Float32BoxesHook
from .hooks.fusing_hook import FusingHook
from .hooks.plugin_check import check_plugins

__all__ = [
    'AddedNeckHook',
    'BackboneCheckHook',
    'Float32BoxesHook',
    'FusingHook',
    'check_channels',
    'check_plugins',
    'give_to_first_neck',
]
