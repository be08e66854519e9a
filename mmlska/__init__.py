"""Large-kernel attention for OpenMMLab detectors and segmentors.

Nothing is imported here: mmengine imports this module while it resolves a ``mmlska.*`` type, and an
import error raised here would surface as "not in the registry". :func:`from_pretrained` imports the
models when it is asked for.
"""

__version__ = '0.1.0'


def __getattr__(name: str) -> object:
    if name == 'from_pretrained':
        from mmlska.models.pretrained import from_pretrained

        return from_pretrained
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
