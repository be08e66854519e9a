"""What an OpenMMLab config names: layers, backbones and necks."""

from mmlska.layers import *  # noqa: F403
from mmlska.patches import make_roi_align_read_any_layout

from .backbones import *  # noqa: F403
from .necks import *  # noqa: F403

make_roi_align_read_any_layout()
