from .backbone_check import BackboneCheckHook, check_channels
from .plugin_check import check_plugins

__all__ = ['BackboneCheckHook', 'check_channels', 'check_plugins']
