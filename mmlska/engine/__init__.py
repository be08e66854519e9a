from .backbone_check import BackboneCheckHook, check_channels

__all__ = ['BackboneCheckHook', 'check_channels']
