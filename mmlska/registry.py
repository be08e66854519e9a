"""Registries of mmlska: children of mmengine's roots, reachable as ``type='mmlska.X'``.

mmengine imports this module by itself when it meets the scope ``mmlska`` and hides any ImportError
raised here, so nothing but mmengine is imported.

Where mmengine cannot be imported, :class:`Names` stands in for the registries, so that the layers
need nothing but PyTorch: its decorator leaves a class as it is, and the names of our own classes
still resolve.
"""

from collections.abc import Callable


class Names:
    """Stands in for a registry of mmengine where that is absent: our own classes by their names."""

    def __init__(self) -> None:
        self.module_dict: dict[str, type] = {}

    def register_module(self, name: str | None = None) -> Callable[[type], type]:
        """A decorator that leaves the class as it is."""

        def remember(kind: type) -> type:
            self.module_dict[name or kind.__name__] = kind
            return kind

        return remember


try:
    from mmengine.registry import HOOKS as MMENGINE_HOOKS
    from mmengine.registry import METRICS as MMENGINE_METRICS
    from mmengine.registry import MODELS as MMENGINE_MODELS
    from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
    from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
    from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
    from mmengine.registry import Registry
except ImportError:
    MODELS, HOOKS, METRICS = Names(), Names(), Names()
    STRATEGIES, TRANSFORMS, WEIGHT_INITIALIZERS = Names(), Names(), Names()
else:
    MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmlska', locations=['mmlska.models'])
    HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmlska', locations=['mmlska.engine'])
    METRICS = Registry(
        'metric', parent=MMENGINE_METRICS, scope='mmlska', locations=['mmlska.evaluation']
    )
    STRATEGIES = Registry(
        'strategy',
        parent=MMENGINE_STRATEGIES,
        scope='mmlska',
        locations=['mmlska.engine.sharded_strategy'],
    )
    TRANSFORMS = Registry(
        'transform', parent=MMENGINE_TRANSFORMS, scope='mmlska', locations=['mmlska.datasets']
    )
    WEIGHT_INITIALIZERS = Registry(
        'weight initializer',
        parent=MMENGINE_WEIGHT_INITIALIZERS,
        scope='mmlska',
        locations=['mmlska.conversion'],
    )


def find_model(name: str) -> Callable | None:
    """What a config means by the type of a model or of a part of one.

    Our own classes come first, then those of mmengine's root registry, then those of the current
    default scope. ``Registry.build`` looks in the *default scope* alone, so that ``'LSKA'`` would
    not be found inside an mmdet config.

    Args:
        name (str): ``'LSKA'``, ``'mmlska.LSKA'``, or the name of a class of another library.

    Returns:
        Callable | None: The class; None if nobody knows the name.
    """
    own = MODELS.module_dict.get(name.removeprefix('mmlska.'))
    if own is not None or isinstance(MODELS, Names):
        return own
    try:
        found = MODELS.get(name)
        if found is None:
            with MODELS.switch_scope_and_registry(None) as registry:
                found = registry.get(name)
    except (ImportError, RuntimeError):
        # Searching imports all models, which need mmcv too; and a dotted name may be that of a
        # module without such a class. Either way nobody knows the name.
        return None
    return found if callable(found) else None
