"""Large-kernel attention for OpenMMLab detectors and segmentors.

Nothing but the version stands here: mmengine imports this module while it resolves a
``mmlska.*`` type, and an import error raised here would surface as "not in the registry".
"""

__version__ = '0.1.0'
