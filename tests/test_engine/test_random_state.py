import random

import numpy as np
import torch

from mmlska.engine.random_state import random_state, set_random_state


def draw() -> list:
    # The second half of a pair of normal numbers is part of the state too.
    return [random.gauss(0, 1), *np.random.normal(size=3), *torch.randn(3).tolist()]


def test_the_same_numbers_follow_the_same_state():
    draw()
    state = random_state()
    first = draw()
    assert draw() != first
    set_random_state(state)
    assert draw() == first


def test_the_state_passes_a_file_that_is_read_safely(tmp_path):
    torch.save(random_state(), tmp_path / 'state.pth')
    first = draw()
    set_random_state(torch.load(tmp_path / 'state.pth', weights_only=True))
    assert draw() == first
