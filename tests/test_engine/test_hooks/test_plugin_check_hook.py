from types import SimpleNamespace

import pytest
from torch import nn

from mmlska.engine import PluginCheckHook


class Block(nn.Module):
    """A block with two plugins at one position, as those of ResNets."""

    def __init__(self):
        super().__init__()
        self.after_conv2_plugin_names = ['eca', 'lska']
        self.after_conv3_plugin_names = ['gate']


class LastOnly(Block):
    def forward_plugin(self, x, plugin_names):
        for name in plugin_names:
            out = getattr(self, name)(x)
        return out


class Chained(Block):
    def forward_plugin(self, x, plugin_names):
        for name in plugin_names:
            x = getattr(self, name)(x)
        return x


def test_the_hook_stops_a_run_that_would_lose_a_plugin():
    with pytest.raises(ValueError, match=r"eca of 0 never runs.*'after_conv2', which is lska"):
        PluginCheckHook().before_run(SimpleNamespace(model=nn.Sequential(LastOnly())))


def test_the_hook_lets_a_block_pass_that_runs_them_all():
    hook = PluginCheckHook()
    model = nn.Sequential(Chained())
    hook.before_run(SimpleNamespace(model=model))
    model.append(LastOnly())
    with pytest.raises(ValueError, match='eca of 1 never runs'):
        hook.before_run(SimpleNamespace(model=model))
