"""Folders that results go into, looked at before hours are spent on them."""

import os
import tempfile
from pathlib import Path


def make_folder(folder: str | Path, option: str) -> None:
    """Make a folder that is to be written into, where it is not there yet.

    Args:
        folder: The folder.
        option: What has named it, for messages.

    Raises:
        OSError: If it cannot be made or written into. The message names it and the option.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            return
    except OSError as error:
        raise OSError(
            f'{option}: no file can be written into {str(folder)!r} ({error.strerror}); name '
            'another folder'
        ) from error
