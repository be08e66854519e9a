"""Let this process, and those that it starts, look like one of Windows where programs stumble.

Python imports the module by its name before anything else, where its folder is on PYTHONPATH. It
takes away what Windows lacks, and lets the disk refuse what it refuses there. Below the current
folder alone: system folders are those of Linux. Not shown: backslashes between folders, and files
that stay in use by others.
"""

import builtins
import enum
import errno
import io
import multiprocessing
import os
import signal

HERE = os.getcwd() + os.sep
SIGNALS = ('SIGABRT', 'SIGFPE', 'SIGILL', 'SIGINT', 'SIGSEGV', 'SIGTERM')
LACKING = ('fork', 'forkpty', 'killpg', 'sched_getaffinity')
REFUSED = set('<>:"|?*')


def below_here(path) -> str:
    """The path if it is one below the folder that the process has started in, else ''."""
    if isinstance(path, int):
        return ''
    path = os.path.abspath(os.fsdecode(path))
    return path if path.startswith(HERE) else ''


def check_name(path, *_) -> None:
    """Refuse a name with a letter that Windows keeps for itself."""
    if REFUSED & set(below_here(path).removeprefix(HERE)):
        raise OSError(errno.EINVAL, 'Invalid argument', str(path))


def check_folder(path, *_) -> None:
    """Refuse to open a folder as a file."""
    if below_here(path) and os.path.isdir(path):
        raise PermissionError(errno.EACCES, 'Permission denied', str(path))


def check_unused(*paths) -> None:
    """Refuse to move or remove a file that this process has open."""
    wanted = {os.path.realpath(path) for path in filter(None, map(below_here, paths[:2]))}
    for handle in os.listdir('/proc/self/fd') if wanted else ():
        used = os.path.realpath(f'/proc/self/fd/{handle}')
        if used in wanted:
            raise PermissionError(errno.EACCES, 'it is used by a process', used)


def check_free(source, target, *_) -> None:
    """Refuse to rename over what is there."""
    if below_here(target) and os.path.exists(target):
        raise FileExistsError(errno.EEXIST, 'File exists', str(target))


def check_written(handle: int) -> None:
    """Refuse to flush what is open for reading."""
    with plain_open(f'/proc/self/fdinfo/{handle}') as lines:
        flags = next(int(line.split()[1], 8) for line in lines if line.startswith('flags'))
    if flags & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, 'Bad file descriptor')


def guard(module, name: str, *checks) -> None:
    """Let a function check what it is given."""
    function = getattr(module, name)

    def guarded(*args, **options):
        for check in checks:
            check(*args)
        return function(*args, **options)

    setattr(module, name, guarded)


plain_open = open
for name in [name for name in dir(signal) if name.startswith('SIG') and '_' not in name]:
    # PyTorch, which knows where it runs, asks for the last one.
    if name not in (*SIGNALS, 'SIGCHLD'):
        delattr(signal, name)
for name in ('sigtimedwait', 'sigwait', 'sigwaitinfo', 'pthread_sigmask', 'pthread_kill', 'alarm'):
    delattr(signal, name)
signal.Signals = enum.IntEnum('Signals', {name: int(getattr(signal, name)) for name in SIGNALS})
for name in LACKING:
    delattr(os, name)
guard(os, 'open', check_name, check_folder)
guard(os, 'mkdir', check_name)
guard(os, 'replace', check_name, check_unused)
guard(os, 'rename', check_name, check_unused, check_free)
guard(os, 'remove', check_unused)
guard(os, 'unlink', check_unused)
guard(os, 'fsync', check_written)
guard(builtins, 'open', check_name)
io.open = builtins.open
multiprocessing.set_start_method('spawn')
