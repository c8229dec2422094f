"""The YAML files of the catalogue: read, checked, and loaded into rows."""

import re
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from django.conf import settings
from django.db import transaction
from django.utils.module_loading import import_string
from rest_framework.exceptions import ValidationError

from monitoring.api.errors import sentences
from presets.entries import SERIALIZERS
from presets.models import Preset

_OWN = Path(__file__).parent / "catalog"
_FILES = {
    "local_models.yaml": Preset.Kind.LOCAL,
    "cloud_models.yaml": Preset.Kind.CLOUD,
    "embedding_models.yaml": Preset.Kind.EMBEDDING,
}
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+([eE][-+]?[0-9]+)?)?")
# All columns but the key and the name.
_FIELDS = [f.attname for f in Preset._meta.concrete_fields if f.attname not in ("id", "name")]


class _Loader(yaml.SafeLoader):
    """Refuses what YAML would read as something else than it looks like."""

    def construct_decimal(self, node: yaml.ScalarNode) -> Any:
        """010, 0x10, 1_000 and 1:30 are numbers of YAML 1.1, but hardly those that were meant."""
        if not _DECIMAL.fullmatch(node.value):
            what = f"{node.value} is no decimal number: write one, or put a text in quotes"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=node.start_mark)
        return yaml.safe_load(node.value)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """YAML itself takes the last of several equal keys."""
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                what = f"{key.value} is there twice: leave one out"
                raise yaml.MarkedYAMLError(problem=what, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


for kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{kind}", _Loader.construct_decimal)


@dataclass(slots=True)
class Catalogue:
    """The presets by name, of which a later folder's go before an earlier one's, unsaved.

    `problems` are sentences that name file, entry and field; a file with one gives no presets.
    """

    presets: dict[str, Preset] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read() -> Catalogue:
    """Read our own folder and those of PRESETS_DIRS."""
    catalogue = Catalogue()
    for folder in [_OWN, *map(Path, settings.PRESETS_DIRS)]:
        presets: dict[str, Preset] = {}
        paths = {folder / name: kind for name, kind in _FILES.items()}
        if not any(path.is_file() for path in paths):
            catalogue.problems.append(f"{folder}: it has none of {', '.join(_FILES)}.")
        for path, kind in paths.items():
            if path.is_file():
                found, problems = _read_file(path, kind, presets.keys())
                catalogue.problems += problems
                presets |= {} if problems else found
        catalogue.presets |= presets
    return catalogue


def load() -> Catalogue:
    """Make the rows what the files say, except for those that were edited; what was read.

    While a file has a problem no row is deleted: it may be in there.
    """
    catalogue = read()
    with transaction.atomic():
        edited = set(Preset.objects.filter(is_edited=True).values_list("name", flat=True))
        Preset.objects.bulk_create(
            [preset for name, preset in catalogue.presets.items() if name not in edited],
            update_conflicts=True,
            unique_fields=["name"],
            update_fields=_FIELDS,
        )
        if not catalogue.problems:
            gone = Preset.objects.filter(is_edited=False).exclude(name__in=catalogue.presets)
            gone.delete()
    return catalogue


def packaged() -> list[Preset]:
    """Models of the catalogue whose weights come as packages; needs no database."""
    found = read().presets.values()
    return [preset for preset in found if preset.source == Preset.Source.PACKAGE]


def examine(kind: str, entry: Any) -> tuple[Preset | None, list[str]]:
    """The preset of an entry, unsaved, or what is wrong with the entry: `field: what`."""
    try:
        preset = Preset(kind=kind, **SERIALIZERS[kind]().run_validation(entry))
        import_string(settings.PRESET_CHECK)(preset)
    except ValidationError as error:
        return None, [problem.rstrip(".") for problem in sentences(error.detail)]
    return preset, []


def _read_file(path: Path, kind: str, taken: Set[str]) -> tuple[dict[str, Preset], list[str]]:
    """Its presets by name, and its problems; `taken` are names of the folder's other files."""
    try:
        entries = yaml.load(path.read_text(), _Loader)  # noqa: S506 (it is a SafeLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # in a line
        return {}, [f"{path.name}: it cannot be read: {reason}"]
    if not isinstance(entries, list):
        return {}, [f"{path.name}: it has to be a list of entries."]
    presets: dict[str, Preset] = {}
    problems: list[str] = []
    for number, entry in enumerate(entries, start=1):
        preset, found = examine(kind, entry)
        if preset and preset.name in taken | presets.keys():
            found = ["name: another entry has it"]
        elif preset:
            presets[preset.name] = preset
        name = entry.get("name") if isinstance(entry, dict) else None
        problems += [f"{path.name}: {name or f'entry {number}'}: {each}." for each in found]
    return presets, problems
