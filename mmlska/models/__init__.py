"""What an OpenMMLab config names: layers, backbones and necks."""

from mmlska import patches
from mmlska.layers import *  # noqa: F403

from .backbones import *  # noqa: F403
from .classifier import VANClassifier as VANClassifier
from .log_forwarding import forward_logs
from .necks import *  # noqa: F403
from .pretrained import from_pretrained as from_pretrained

patches.apply()
forward_logs()
