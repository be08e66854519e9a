from .container import ContainerLight
from .ghostnetv2 import GhostNetV2
from .van import VAN

__all__ = ['VAN', 'ContainerLight', 'GhostNetV2']
