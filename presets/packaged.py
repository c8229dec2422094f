"""Presets whose weights come as installed Python packages."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

_CATALOG = Path(__file__).parent / "catalog" / "local_models.yaml"


@dataclass(frozen=True, slots=True)
class PackagedPreset:
    """A model file inside a Python package, and how to register it."""

    name: str
    package: str
    filename: str
    provider_config: dict[str, Any]

    def installed_file(self) -> Path | None:
        """The file, or None when the package is not installed."""
        spec = find_spec(self.package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            path = Path(folder) / self.filename
            if path.is_file():
                return path
        return None


def packaged_presets() -> list[PackagedPreset]:
    """All entries of the catalogue with `source: package`."""
    entries = yaml.safe_load(_CATALOG.read_text())
    return [
        PackagedPreset(
            name=entry["name"],
            package=entry["package"],
            filename=entry["filename"],
            provider_config=entry["provider_config"],
        )
        for entry in entries
        if entry["source"] == "package"
    ]
