"""Reading an annotation file in COCO's format, and saying why one cannot be read."""

import codecs
import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .faults import Fault

# What mmdet reads of each entry; another list in its place, or none, stops the run.
LISTS = ('images', 'annotations', 'categories')
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@contextmanager
def without_cycle_search() -> Iterator[None]:
    """Let Python's search for cycles rest.

    Json holds none, and looking for them among the millions of its lists takes longer than reading.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@without_cycle_search()
def read_annotations(
    path: str | Path, exact: bool = True
) -> tuple[dict[str, Any] | None, list[Fault]]:
    """Read a json file of images, annotations and categories.

    Args:
        path: The file.
        exact: False reads in half the time where orjson is installed; whole numbers beyond 64 bits
            become floats.

    Returns:
        Its content, None where nothing can be made of it, and what is wrong with the file as such.
        A file in another encoding than UTF-8 is read all the same.
    """
    problem = path_fault(path)
    if problem:
        return None, [problem]
    content = Path(path).read_bytes()
    data, faults = None if exact else parsed_by_orjson(content), []
    if data is None:
        text, faults = decode(str(path), content)
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            return None, [*faults, syntax_fault(str(path), text, error)]
    missing = structure_fault(str(path), data)
    return (None, [*faults, missing]) if missing else (data, faults)


def parsed_by_orjson(content: bytes) -> Any:
    """The content of a file; None without orjson, or if it is more than strict json in UTF-8."""
    try:
        import orjson
    except ImportError:
        return None
    try:
        return orjson.loads(content)
    except ValueError:
        return None


def path_fault(path: str | Path) -> Fault | None:
    """The fault of a path that is no file with something in it."""
    if os.path.isdir(path):
        return Fault(str(path), 'is a folder, not an annotation file', 'name the .json inside it')
    if not os.path.exists(path):
        return Fault(str(path), 'does not exist', 'correct ann_file or data_root of the config')
    if not os.path.getsize(path):
        return Fault(str(path), 'is empty', 'export or download it again')
    return None


def decode(path: str, content: bytes) -> tuple[str, list[Fault]]:
    """Decode a file; anything but plain UTF-8 is a fault, for pycocotools reads nothing else."""
    if content.startswith(UTF16):
        encoding, name = 'utf-16', 'UTF-16'
    elif content.startswith(codecs.BOM_UTF8):
        encoding, name = 'utf-8-sig', 'UTF-8 with a byte order mark (BOM)'
    else:
        try:
            return content.decode('utf-8'), []
        except UnicodeDecodeError as error:
            encoding, name = 'latin-1', f'no UTF-8 from byte {error.start} on (Latin-1 would fit)'
    remedy = 'save it as UTF-8 without a mark; --fix does'
    text = content.decode(encoding, errors='replace')
    return text, [Fault(path, f'the encoding is {name}: the data set cannot be loaded', remedy)]


def syntax_fault(path: str, text: str, error: Exception) -> Fault:
    """The fault of text that is no json, told apart from a file that was cut off."""
    if isinstance(error, json.JSONDecodeError) and error.pos >= len(text.rstrip()) - 1:
        return Fault(path, f'ends in the middle, after {len(text)} characters', 'copy it again')
    if isinstance(error, json.JSONDecodeError) and 'Unterminated string' in error.msg:
        return Fault(path, f'ends in the middle of a text (line {error.lineno})', 'copy it again')
    return Fault(path, f'is no json: {error}', 'export it again')


def structure_fault(path: str, data: Any) -> Fault | None:
    """The fault of json that does not hold COCO's lists of objects."""
    remedy = f'it has to be an object with the lists {", ".join(LISTS)}'
    if not isinstance(data, dict):
        return Fault(path, f'holds a {type(data).__name__}, not an object', remedy)
    for name in LISTS:
        if name not in data:
            return Fault(path, f'has no {name!r}', f'{remedy}; it has {", ".join(data) or "none"}')
        entries = data[name]
        if not isinstance(entries, list) or not set(map(type, entries)) <= {dict}:
            return Fault(path, f'{name!r} is no list of objects', remedy)
    if not data['categories']:
        return Fault(path, "'categories' is empty: no class can be found", remedy)
    return None
