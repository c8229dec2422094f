"""Presets whose weights come as installed Python packages."""

import os
import shutil
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from django.conf import settings

_CATALOG = Path(__file__).parent / "catalog" / "local_models.yaml"


@dataclass(frozen=True, slots=True)
class PackagedPreset:
    """A model whose weights lie in a Python package, and how to register it.

    Some packages hold the file in parts, and have a function `assemble(path)` that writes it and
    checks its hash. `size_b`: parameters, in billions.
    """

    name: str
    package: str
    filename: str
    size_b: float
    is_in_parts: bool
    provider_config: dict[str, Any]

    def is_installed(self) -> bool:
        """Whether the package is there."""
        return find_spec(self.package) is not None

    def installed_file(self) -> Path | None:
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
        source = self.installed_file()
        if source and target.exists() and target.stat().st_size == source.stat().st_size:
            return
        partial = target.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        if self.is_in_parts:
            # Imported here alone: no other process has a use for the package's code.
            import_module(self.package).assemble(partial)
        else:
            _link_or_copy(source, partial)
        partial.replace(target)


def packaged_presets() -> list[PackagedPreset]:
    """All entries of the catalogue with `source: package`."""
    entries = yaml.safe_load(_CATALOG.read_text())
    return [
        PackagedPreset(
            name=entry["name"],
            package=entry["package"],
            filename=entry["filename"],
            size_b=entry["size_b"],
            is_in_parts=entry.get("in_parts", False),
            provider_config=entry["provider_config"],
        )
        for entry in entries
        if entry["source"] == "package"
    ]


def _link_or_copy(source: Path | None, target: Path) -> None:
    """A hard link costs nothing; where the disks differ it takes a copy."""
    if source is None:
        raise FileNotFoundError(f"The package has no file {target.name}: install it anew.")
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
