from .backbones import *  # noqa: F403
from .layers import *  # noqa: F403
from .necks import *  # noqa: F403
from .roi_layout import make_roi_align_read_any_layout

make_roi_align_read_any_layout()
