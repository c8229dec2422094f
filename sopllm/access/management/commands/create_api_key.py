"""Makes an API key, and shows it once."""

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from monitoring.api.principal import Limits, Scope
from sopllm.access.models import ApiKey


class Command(BaseCommand):
    help = "Make an API key, and show it; the database keeps a digest alone."

    def add_arguments(self, parser: ArgumentParser) -> None:
        scopes = ", ".join(Scope)
        parser.add_argument("owner", help="whose tasks it sees: a-z, 0-9, '.', '_', '-'")
        parser.add_argument("--scopes", default="tasks", help=f"some of {scopes}, with commas")
        parser.add_argument("--name", default="", help="what it is for")
        parser.add_argument("--expires", default="", help="in days, as 90d, or 2027-01-31T00:00Z")
        for name in Limits.__dataclass_fields__:
            parser.add_argument(
                f"--{name.replace('_', '-')}", help="by default as the settings say"
            )
        parser.add_argument("--quiet", action="store_true", help="print the key alone")

    def handle(self, *args: Any, **options: Any) -> None:
        scopes = [scope.strip() for scope in options["scopes"].split(",")]
        expires_at = self.expiry(options["expires"])
        limits = {name: options[name] for name in Limits.__dataclass_fields__}
        try:
            key, text = ApiKey.objects.make(
                options["owner"], scopes, name=options["name"], expires_at=expires_at, **limits
            )
        except ValidationError as exc:
            raise CommandError(" ".join(exc.messages)) from exc
        if options["quiet"]:
            self.stdout.write(text)
            return
        until = f"{expires_at:%Y-%m-%d %H:%M} UTC" if expires_at else "it is revoked"
        self.stdout.write(
            f"A key of {key.owner} for {', '.join(key.scopes)}, until {until}. It is shown this "
            f"once:\n\n{text}\n\nTry it:\n\ncurl -H 'Authorization: Bearer {text}' "
            f"http://{settings.SERVER_HOST}:{settings.SERVER_PORT}/api/v1/keys/me\n\n"
            f"Revoke it: python manage.py revoke_api_key {key.prefix}"
        )

    def expiry(self, text: str) -> Any:
        """The time that is meant; None for "". Raises CommandError."""
        if not text:
            return None
        if text.endswith("d") and text[:-1].isdecimal() and len(text) < 7:
            return timezone.now() + timedelta(days=int(text[:-1]))
        try:
            moment = parse_datetime(text)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None or moment <= timezone.now():
            raise CommandError("Give --expires as 90d, or as a time to come with its zone.")
        return moment
