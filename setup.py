"""Puts configs, tools and the indices where mim looks for them: into ``mmlska/.mim``.

The metadata stands in setup.cfg, except for the README as the package index shows it.
"""

import configparser
import os
import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.develop import develop
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
MIM_CONTENTS = ('configs', 'tools', 'model-index.yml', 'dataset-index.yml')
# What is in tools/misc needs a checkout.
NOT_SHIPPED = shutil.ignore_patterns('__pycache__', '*.py[cod]', '.*', 'misc')

LINK = re.compile(r'\]\((?!\w+:|#)([^)\s]+)\)')
PICTURES = ('.png', '.jpg', '.svg')


def read_long_description() -> str:
    """Return the README with absolute links: the package index has no files beside it."""
    metadata = configparser.RawConfigParser()
    metadata.read(ROOT / 'setup.cfg', encoding='utf-8')
    home = metadata['metadata']['url']

    def absolute(match: re.Match[str]) -> str:
        kind = 'raw' if match[1].endswith(PICTURES) else 'blob'
        return f']({home}/{kind}/main/{match[1]})'

    return LINK.sub(absolute, (ROOT / 'README.md').read_text(encoding='utf-8'))


def copy_mim_contents(package: Path) -> None:
    """Copies the repository's mim contents into a package folder that is about to be packed."""
    target = package / '.mim'
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in MIM_CONTENTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=NOT_SHIPPED)
        else:
            shutil.copy2(ROOT / name, target / name)


def link_mim_contents() -> None:
    """Links the repository's mim contents into its own package folder, so that edits count."""
    target = ROOT / 'mmlska' / '.mim'
    target.mkdir(exist_ok=True)
    for name in MIM_CONTENTS:
        link = target / name
        if not link.is_symlink():
            link.symlink_to(Path(os.pardir, os.pardir, name))


class BuildPackage(build_py):
    """Adds ``.mim`` to the build folder, or links it for an editable installation."""

    def run(self) -> None:
        """Run the command."""
        if getattr(self, 'editable_mode', False):
            link_mim_contents()
            super().run()
            return
        # A module that was renamed since the last build would otherwise be packed under both names.
        package = Path(self.build_lib, 'mmlska')
        shutil.rmtree(package, ignore_errors=True)
        super().run()
        copy_mim_contents(package)


class LinkPackage(develop):
    """Links ``.mim`` where an old setuptools installs in editable mode without ``build_py``."""

    def run(self) -> None:
        """Run the command."""
        link_mim_contents()
        super().run()


class PackSource(sdist):
    """Adds ``.mim`` to the source archive."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Fill the folder that is archived."""
        super().make_release_tree(base_dir, files)
        copy_mim_contents(Path(base_dir, 'mmlska'))


setup(
    long_description=read_long_description(),
    cmdclass={'build_py': BuildPackage, 'develop': LinkPackage, 'sdist': PackSource},
)
