"""Weights that come as installed Python packages."""

import os
import shutil
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from django.conf import settings


@dataclass(frozen=True, slots=True)
class PackagedFile:
    """A GGUF file in a Python package.

    Some packages hold the file in parts, and have a function `assemble(path)` that writes it and
    checks its hash.
    """

    package: str
    filename: str
    is_in_parts: bool

    def is_installed(self) -> bool:
        """Whether the package is there."""
        return find_spec(self.package) is not None

    def installed_path(self) -> Path | None:
        """The weights as one file: in the package, or where it was assembled; None without."""
        if self.is_in_parts:
            assembled = Path(settings.MODELS_DIR) / self.filename
            return assembled if assembled.is_file() else None
        spec = find_spec(self.package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            path = Path(folder) / self.filename
            if path.is_file():
                return path
        return None

    def put_into_models_dir(self) -> None:
        """Have the file in MODELS_DIR; nothing is copied that is there or can be linked.

        OSError, ImportError or ValueError when the package is incomplete or the disk is full.
        """
        target = Path(settings.MODELS_DIR) / self.filename
        source = self.installed_path()
        if source and target.exists() and target.stat().st_size == source.stat().st_size:
            return
        # Two processes may do this at once: each has a folder of its own.
        with TemporaryDirectory(prefix=".", dir=settings.MODELS_DIR) as folder:
            partial = Path(folder) / self.filename
            if self.is_in_parts:
                # Imported here, since only this process needs the package's code.
                import_module(self.package).assemble(partial)
            elif source is None:
                message = f"The package has no file {self.filename}: install it anew."
                raise FileNotFoundError(message)
            else:
                try:
                    os.link(source, partial)
                except OSError:  # on another disk
                    shutil.copyfile(source, partial)
            partial.replace(target)
