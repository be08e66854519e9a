from .van import VAN

__all__ = ['VAN']
