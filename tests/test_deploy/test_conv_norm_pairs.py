import pytest
import torch
from fusing_laws import batch_norms, fuses_exactly, trained
from torch import nn

from mmlska.deploy.conv_norm_pairs import traced_pairs


class Pair(nn.Module):
    """A convolution and a norm, of which subclasses make something."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)).relu()


class Residual(Pair):
    def forward(self, x):
        return x + self.norm(self.conv(x).clone() * 1) + self.conv.bias.sum()


class SeenTwice(Pair):
    def forward(self, x):
        x = self.conv(x)
        return x + self.norm(x)


class ConvTwice(Pair):
    def forward(self, x):
        return self.norm(self.conv(x)) + self.conv(2 * x)


class NormTwice(Pair):
    def forward(self, x):
        return self.norm(self.norm(self.conv(x)))


class WeightReadToo(Pair):
    def forward(self, x):
        return self.norm(self.conv(x)) * self.conv.weight.mean()


class TwoNames(Pair):
    def __init__(self):
        super().__init__()
        self.other = self.conv

    def forward(self, x):
        return self.norm(self.other(x))


class AskingForValues(Pair):
    def forward(self, x):
        return self.norm(self.conv(x)) if x.sum() > 0 else self.conv(x)


class WithState(Pair):
    def forward(self, x):
        self.seen = x.shape
        return self.norm(self.conv(x))


class NormFirst(Pair):
    def forward(self, x):
        return self.conv(self.norm(x))


class NormFirstAndBeside(Pair):
    def forward(self, x):
        x = self.norm(x)
        return x + self.conv(x)


@pytest.mark.parametrize(
    ('kind', 'fusible'),
    [
        (Pair, True),
        (WithState, True),
        (NormFirst, True),
        (NormFirstAndBeside, False),
        (Residual, False),
        (SeenTwice, False),
        (ConvTwice, False),
        (NormTwice, False),
        (WeightReadToo, False),
        (TwoNames, False),
        (AskingForValues, False),
    ],
)
def test_only_what_a_forward_pass_proves_is_fused(kind, fusible):
    model = trained(kind())
    fused = fuses_exactly(model, 2, 4, 5, 3)
    assert bool(batch_norms(fused)) == (not fusible)


def test_following_a_forward_pass_leaves_no_trace():
    model = trained(WithState())
    assert traced_pairs(model) == [('conv', 'norm')]
    assert not hasattr(model, 'seen')


def test_one_convolution_before_several_norms_becomes_several():
    conv = nn.Conv2d(4, 4, 1)
    levels = [nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU()) for _ in range(2)]
    model = trained(nn.Sequential(*levels))
    fused = fuses_exactly(model, 1, 4, 6, 6)
    assert not batch_norms(fused)
    assert not torch.equal(fused[0][0].weight, fused[1][0].weight)
    assert model[0][0] is model[1][0]


def test_long_chains_are_fused_whole():
    layers = [
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, padding=1),
    ]
    layers += [nn.BatchNorm2d(4), nn.Dropout(), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)]
    fused = fuses_exactly(trained(nn.Sequential(*layers)), 1, 4, 6, 6)
    assert batch_norms(fused) == ['6', '8']
