"""Revokes an API key."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from sopllm.access.models import KEY_PATTERN, ApiKey


class Command(BaseCommand):
    help = "Revoke an API key: within five seconds it lets in nobody, and its streams end."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("prefix", help="the eight characters after sopllm_, or the key itself")

    def handle(self, *args: Any, **options: Any) -> None:
        whole = KEY_PATTERN.fullmatch(options["prefix"])
        prefix = whole[1] if whole else options["prefix"].removeprefix("sopllm_")
        keys = ApiKey.objects.filter(prefix=prefix)
        if not keys.exists():
            raise CommandError(f"There is no key with the prefix {prefix}.")
        was = "revoked" if keys.revoke() else "revoked already"
        self.stdout.write(f"The key {prefix} is {was}.")
