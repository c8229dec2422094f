"""Loads the catalogue of presets into the database."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from presets import catalogue


class Command(BaseCommand):
    help = "Load the catalogue of presets; those that were edited in the admin stay as they are."

    def handle(self, *args: Any, **options: Any) -> None:
        found = catalogue.load()
        if options["verbosity"]:
            self.stdout.write(f"{len(found.presets)} presets.")
        if found.problems:
            raise CommandError("\n".join(found.problems))
