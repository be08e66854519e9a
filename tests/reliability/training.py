"""The training that is killed: the toy of the tests, slow enough to be met at any point.

usage: training.py WORK_DIR LOOP [OPTION=VALUE ...], where LOOP is epochs or iterations
"""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from toy_training import BATCHES, toy_runner

from mmlska.engine.distributed import prepare_launcher

EPOCHS = 4
# A file that takes a while to write, and more than a small disk.
BALLAST = 500_000
CHUNKS = 10


class Pace(Hook):
    """Take time for an iteration, and tell how far the training is."""

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        time.sleep(0.05)
        # Lines of two processes must not mix.
        os.write(1, f'iteration {runner.iter}\n'.encode())


class FillDisk(Hook):
    """Take all the room that is left, as another program may."""

    def __init__(self, at: int, folder: str) -> None:
        self.at, self.folder = at, folder

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter != self.at:
            return
        with open(Path(self.folder, 'filler'), 'wb', buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass


def write_slowly(self, content: bytes, path: str) -> None:
    """Write as a slow disk does, in pieces."""
    size = -(-len(content) // CHUNKS)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'wb') as file:
        for start in range(0, len(content), size):
            file.write(content[start : start + size])
            file.flush()
            time.sleep(0.03)


def main() -> None:
    """Train, resume if there is something to resume, and leave the weights in final.pth."""
    work_dir, loop, *options = sys.argv[1:]
    options = {key: json.loads(value) for key, value in (item.split('=', 1) for item in options)}
    by_epoch = loop == 'epochs'
    LocalBackend.put = write_slowly
    settings = dict(max_keep_ckpts=1)
    settings.update(options.pop('checkpoint', {}))
    cfg = Config(dict(model={}))
    prepare_launcher(cfg, 'pytorch' if 'TORCHELASTIC_RUN_ID' in os.environ else 'none')
    hooks = [Pace()]
    if 'fill_at' in options:
        hooks.append(FillDisk(options.pop('fill_at'), work_dir))
    runner = toy_runner(
        Path(work_dir),
        by_epoch,
        EPOCHS if by_epoch else EPOCHS * BATCHES,
        hooks,
        checkpoint=settings,
        resume=True,
        launcher=cfg.launcher,
        cfg=cfg,
        ballast=BALLAST,
        **options,
    )
    runner.train()
    Path(work_dir, 'filler').unlink(missing_ok=True)
    if runner.rank == 0:
        torch.save(runner.model.state_dict(), Path(work_dir) / 'final.pth')


if __name__ == '__main__':
    main()
