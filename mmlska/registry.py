"""Registries of mmlska: children of mmengine's roots, reachable as ``type='mmlska.X'``.

mmengine imports this module by itself when it meets the scope ``mmlska`` and hides any ImportError
raised here, so nothing but mmengine is imported.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmlska', locations=['mmlska.models'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmlska', locations=['mmlska.engine'])
METRICS = Registry(
    'metric', parent=MMENGINE_METRICS, scope='mmlska', locations=['mmlska.evaluation']
)
