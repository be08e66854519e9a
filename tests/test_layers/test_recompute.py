import pytest
import torch
from torch import nn
from torch_versions import since

from mmlska.layers.recompute import kept_statistics, recompute
from mmlska.models import VAN, ContainerLight, GhostNetV2

BACKBONES = {
    'van': lambda **kwargs: VAN(
        dict(embed_dims=[4, 8, 8, 8], depths=[2, 2, 1, 1], ffn_ratios=[2, 2, 2, 2]),
        drop_path_rate=0.5,
        **kwargs,
    ),
    'ghostnetv2': lambda **kwargs: GhostNetV2(0.1, **kwargs),
    'container-light': lambda **kwargs: ContainerLight(
        dict(embed_dims=[4, 8, 8, 8], depths=[2, 2, 1, 1], ffn_ratios=[2, 2, 2, 2], num_heads=2),
        drop_path_rate=0.5,
        **kwargs,
    ),
}


@pytest.mark.parametrize('build', BACKBONES.values(), ids=BACKBONES)
def test_two_steps_with_recomputation_train_the_same_model(build):
    plain, saving = build().double().train(), build(with_cp=True).double().train()
    saving.load_state_dict(plain.state_dict())
    for model in (plain, saving):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        # The paths that are dropped are drawn anew in each step.
        torch.manual_seed(1)
        for _ in range(2):
            optimizer.zero_grad()
            x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
            sum(out.square().mean() for out in model(x)).backward()
            optimizer.step()
    expected = plain.state_dict()
    assert any(key.endswith('running_mean') for key in expected)
    for key, value in saving.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-12, msg=key)


@since('2.6', 'its compiler counts what is computed again')
def test_compiled_recomputation_is_one_graph_and_counts_a_batch_once():
    plain = VAN(
        dict(embed_dims=[4, 8], depths=[1, 1], ffn_ratios=[2, 2]),
        patch_sizes=(7, 3),
        out_indices=(0, 1),
    )
    saving = VAN(plain.arch_settings, patch_sizes=(7, 3), out_indices=(0, 1), with_cp=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 32, 32)
    torch._dynamo.reset()
    compiled = torch.compile(saving, backend='aot_eager', fullgraph=True)
    for model in (plain, compiled):
        sum(out.square().mean() for out in model(x)).backward()
    expected = plain.state_dict()
    for key, value in saving.state_dict().items():
        torch.testing.assert_close(value, expected[key], msg=key)
    gradients = dict(plain.named_parameters())
    for key, parameter in saving.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[key].grad, rtol=1e-3, atol=1e-6, msg=key
        )


def test_statistics_follow_again_after_the_backward_pass():
    norm = nn.BatchNorm2d(2)
    x = torch.rand(4, 2, 3, 3, requires_grad=True)
    recompute(norm, norm, x).sum().backward()
    assert norm.num_batches_tracked == 1
    norm(x)
    assert norm.num_batches_tracked == 2


def test_statistics_of_frozen_norms_are_used_while_they_are_kept():
    norm = nn.BatchNorm2d(2).eval()
    norm.running_mean.fill_(3)
    x = torch.rand(4, 2, 3, 3)
    expected = norm(x)
    with kept_statistics(norm):
        assert torch.equal(norm(x), expected)


def test_a_graph_that_is_retained_is_computed_again_by_each_backward_pass():
    norm = nn.BatchNorm2d(2)
    x = torch.rand(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    norm.double()
    weights = torch.randn_like(x)
    out = (recompute(norm, norm, x) * weights).sum()
    out.backward(retain_graph=True)
    once = x.grad.clone()
    out.backward()
    torch.testing.assert_close(x.grad, 2 * once)
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize('build', BACKBONES.values(), ids=BACKBONES)
def test_two_losses_of_one_forward_pass_train_the_same_model(build):
    plain, saving = build().double().train(), build(with_cp=True).double().train()
    saving.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    for model in (plain, saving):
        torch.manual_seed(1)
        *_, first, second = model(x)
        first.square().mean().backward(retain_graph=True)
        second.square().mean().backward()
    gradients = dict(plain.named_parameters())
    for key, parameter in saving.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key].grad, msg=key)
    for key, value in saving.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[key], msg=key)
