"""What the command lines of all scripts share; kept light so that ``--help`` answers at once.

Imported, it prepares the environment for the libraries that the scripts load after it.
"""

import argparse
import atexit
import io
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

OPTIONS_HELP = (
    'settings that override the config, as KEY=VALUE with a dotted key, for example '
    'train_dataloader.batch_size=4 model.backbone.drop_path_rate=0.2; a list is written '
    'KEY="[a,b]" or KEY=a,b, without blanks; an element of a list is named by its index '
    '(train_dataloader.dataset.pipeline.2.scale="(640,400)")'
)


def prepare_environment() -> None:
    """Set variables that libraries read when they are loaded, unless the user has set them.

    Threads of OpenMP that wait for each other spin. On cores that other programs use too they spin
    away the time of the threads that they wait for; sleeping ones do not. On free cores spinning is
    faster.

    Without a home folder that can be written into, as in containers, libraries that keep caches
    fail (numba, yapf): they get a folder that is removed at the end.

    What the output has no letters for, as Chinese names on a Windows pipe, is written in escapes.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')
    if are_cores_taken():
        os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    if 'XDG_CACHE_HOME' in os.environ or can_be_made(os.path.expanduser('~/.cache')):
        return
    folder = os.environ['XDG_CACHE_HOME'] = tempfile.mkdtemp(prefix='mmlska-cache-')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    print(
        f'{os.path.basename(sys.argv[0])}: nothing can be written into the home folder; what this '
        'run downloads and remembers is removed at its end, unless XDG_CACHE_HOME names a folder',
        file=sys.stderr,
    )


def are_cores_taken() -> bool:
    """Whether more has run in the last minute than there are cores; False if that is unknown."""
    return hasattr(os, 'getloadavg') and os.getloadavg()[0] > (os.cpu_count() or 1)


def can_be_made(folder: str) -> bool:
    """Whether a folder can be written into, or made where it does not exist."""
    existing = Path(folder)
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    is_writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return os.path.isabs(folder) and is_writable


prepare_environment()


class OptionsAction(argparse.Action):
    """mmengine's ``DictAction`` that answers a malformed pair with a usage error.

    Scripts that take no such pairs run without mmengine.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        """Store the pairs as a dict.

        Raises:
            SystemExit: If an item is not ``KEY=VALUE``.
        """
        for pair in values:
            if not pair.partition('=')[0] or '=' not in pair:
                parser.error(f'{option_string} takes KEY=VALUE pairs, got {pair!r}')
        from mmengine.config import DictAction

        read = DictAction(self.option_strings, self.dest)
        read(parser, namespace, values, option_string)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the positional ``config`` and ``--cfg-options``."""
    parser.add_argument('config', help='path of a config file, or the name of a shipped config')
    parser.add_argument(
        '--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE', help=OPTIONS_HELP
    )


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the positional ``models``, pairs of a config and its checkpoint, and ``--names``."""
    parser.add_argument(
        'models',
        nargs='+',
        metavar='CONFIG CHECKPOINT',
        help='pairs of a config file (or the name of a shipped config) and its checkpoint',
    )
    parser.add_argument(
        '--names', nargs='+', help='names of the models in tables (default: those of the configs)'
    )


def pair_models(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Turn ``models`` into pairs, each with a name of its own in ``names``.

    Raises:
        SystemExit: If a checkpoint is missing, or there is not one name for each model.
    """
    if len(args.models) % 2:
        parser.error(f'models come as pairs CONFIG CHECKPOINT, got {len(args.models)} arguments')
    args.models = list(zip(args.models[::2], args.models[1::2], strict=True))
    args.names = args.names or _names_of(args.models)
    if len(set(args.names)) != len(args.models) or len(args.names) != len(args.models):
        parser.error(f'--names takes a different name for each of {len(args.models)} models')


def _names_of(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Names of the configs, and of the checkpoints too where configs occur twice."""
    names = [Path(config).stem for config, _ in pairs]
    if len(set(names)) == len(names):
        return names
    paths = [Path(checkpoint) for _, checkpoint in pairs]
    return [
        f'{name} {path.parent.name}/{path.stem}' for name, path in zip(names, paths, strict=True)
    ]


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher`` and ``--local_rank``, which the launch scripts set."""
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what starts the processes of a distributed job (default: none, one process); '
        'without a GPU the processes talk over gloo',
    )
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help='rank of this process on its machine; set by the launcher, never by hand',
    )


def parse_launch_arguments(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse, and hand the local rank on to mmengine, which reads it from the environment."""
    args = parser.parse_args(arguments)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def is_one_of_many() -> bool:
    """Whether this process is one of several of a job."""
    return 'RANK' in os.environ and os.environ.get('WORLD_SIZE', '1') != '1'


def _sentence(error: KeyError) -> str:
    """The message of an error that by default shows it quoted, or a bare key as what it is."""
    text = str(error.args[0]) if error.args else ''
    return text if ' ' in text else f'KeyError: {text!r}'


USER_ERRORS = (OSError, ValueError, TypeError, KeyError, ImportError)


@contextmanager
def report_errors(
    kinds: type[Exception] | tuple[type[Exception], ...] = USER_ERRORS,
) -> Iterator[None]:
    """Turn an error in what the user asked for into one message and exit status 1.

    In a distributed job the message names the process: what one machine lacks, another may have.

    Args:
        kinds: Errors that are the user's. Defaults to those of reading what a command line names.
    """
    try:
        yield
    except kinds as error:
        message = _sentence(error) if isinstance(error, KeyError) else error
        place = f' on {socket.gethostname()}, rank {os.environ["RANK"]}' if is_one_of_many() else ''
        print(f'{os.path.basename(sys.argv[0])}: error{place}: {message}', file=sys.stderr)
        raise SystemExit(1) from error
