"""Running: from a command line to a runner of mmengine, and the hooks that watch it.

Every hook is reached from a config as ``type='mmlska.NAME'``.
"""

from .hooks.added_neck_hook import AddedNeckHook, give_to_first_neck
from .hooks.channel_check_hook import ChannelCheckHook, check_channels
from .hooks.data_check_hook import DataCheckHook
from .hooks.float32_boxes_hook import Float32BoxesHook
from .hooks.fusing_hook import FusingHook
from .hooks.interruption_hook import InterruptionHook
from .hooks.layout_check_hook import LayoutCheckHook, check_layout
from .hooks.measured_table_hook import MeasuredTableHook
from .hooks.new_parts_hook import NewPartsHook
from .hooks.num_class_check_hook import NumClassCheckHook, check_num_classes
from .hooks.plugin_check_hook import PluginCheckHook, check_plugins
from .hooks.random_weights_hook import RandomWeightsHook
from .hooks.safe_checkpoint_hook import SafeCheckpointHook
from .hooks.start_evaluation_hook import StartEvaluationHook
from .hooks.whole_weights_hook import WholeWeightsHook

__all__ = [
    'AddedNeckHook',
    'ChannelCheckHook',
    'DataCheckHook',
    'Float32BoxesHook',
    'FusingHook',
    'InterruptionHook',
    'LayoutCheckHook',
    'MeasuredTableHook',
    'NewPartsHook',
    'NumClassCheckHook',
    'PluginCheckHook',
    'RandomWeightsHook',
    'SafeCheckpointHook',
    'StartEvaluationHook',
    'WholeWeightsHook',
    'check_channels',
    'check_layout',
    'check_num_classes',
    'check_plugins',
    'give_to_first_neck',
]
