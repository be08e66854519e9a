from .channel_check import ChannelCheckHook, check_channels

__all__ = ['ChannelCheckHook', 'check_channels']
