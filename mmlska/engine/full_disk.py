"""Records of a run on a disk that is full."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from mmengine.logging import print_log
from mmengine.visualization import LocalVisBackend, Visualizer


def keep_logging(visualizer: Visualizer) -> None:
    """Let the local records of a run, ``scalars.json``, lose lines rather than end the run."""
    for backend in visualizer._vis_backends.values():
        if isinstance(backend, LocalVisBackend) and '_dump' not in vars(backend):
            backend._dump = partial(_dump_or_warn, backend._dump)


def _dump_or_warn(dump: Callable, *args: Any) -> None:
    try:
        dump(*args)
    except OSError as error:
        # mmengine tells the same warning once.
        print_log(f'the log loses lines: {error}', logger='current', level=logging.WARNING)
