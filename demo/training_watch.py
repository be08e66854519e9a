"""What is seen of a training: its progress and figures on the terminal, all the rest in a log."""

import contextlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner


class DemoError(ValueError):
    """A part of the demo that failed; the message holds the end of its log."""


class Watch(Hook):
    """Shows progress: one line that is drawn again on a terminal, ten lines elsewhere.

    Attributes:
        figures: What each evaluation gave.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.figures: list[dict[str, float]] = []
        # While libraries print into a log.
        self._stream = sys.stdout

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep the figures."""
        self.figures.append(dict(metrics or {}))

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Show the loss and the time that is left."""
        done, total = runner.iter + 1, runner.max_iters
        terminal = self._stream.isatty()
        if done % max(1, total // (200 if terminal else 10)) and done < total:
            return
        loss, seconds = (runner.message_hub.get_scalar(f'train/{key}') for key in ('loss', 'time'))
        left = clock((total - done) * seconds.mean(50))
        line = f'      iteration {done}/{total}  loss {loss.mean(10):.3f}  {left} left'
        if terminal:
            line = f'\r{line:<70}'
        end = '' if terminal and done < total else '\n'
        print(line, end=end, file=self._stream, flush=True)


def clock(seconds: float) -> str:
    """Write a duration as minutes and seconds."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


@contextlib.contextmanager
def output_to(log: str | Path) -> Iterator[None]:
    """Send what libraries print to a file.

    Raises:
        DemoError: In place of an error inside, with the end of the file.
    """
    with open(log, 'w', encoding='utf-8') as stream:
        try:
            with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
                yield
        except Exception as error:
            traceback.print_exc(file=stream)
            stream.flush()
            tail = '\n'.join(Path(log).read_text(encoding='utf-8').splitlines()[-20:])
            raise DemoError(f'{tail}\n\nthese were the last lines of {log}') from error
