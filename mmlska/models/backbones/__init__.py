"""Backbones: images to a tuple of feature maps at strides 4, 8, 16 and 32."""

from .container import ContainerLight
from .ghostnetv2 import GhostNetV2
from .van import VAN

__all__ = ['VAN', 'ContainerLight', 'GhostNetV2']
