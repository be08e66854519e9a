from .dispatch import BACKENDS, depthwise_cascade, use_backend

__all__ = ['BACKENDS', 'depthwise_cascade', 'use_backend']
