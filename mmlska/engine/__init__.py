from .channel_check import ChannelCheckHook, check_channels
from .plugin_check import PluginCheckHook, check_plugins

__all__ = ['ChannelCheckHook', 'PluginCheckHook', 'check_channels', 'check_plugins']
