from .backbones import *  # noqa: F403
from .layers import *  # noqa: F403
