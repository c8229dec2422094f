"""Which webhook secret each owner has: a number alone, from which the secret is derived."""

from datetime import datetime, timedelta
from typing import Any

from django.db import models, transaction
from django.db.models import F
from django.db.models.functions import Now

from monitoring import database_clock

# For so long the secret before the current one signs too.
OVERLAP = timedelta(hours=24)


class WebhookSecretQuerySet(models.QuerySet["WebhookSecret"]):
    def of(self, owner: str) -> "WebhookSecret":
        """The owner's; one that is not stored, of version 0, where the owner has made none."""
        return self.filter(owner=owner).first() or WebhookSecret(owner=owner, made_at=None)

    def renew(self, owner: str) -> "WebhookSecret":
        """Make a new one for the owner, which takes the place of the one before."""
        with transaction.atomic():
            self.get_or_create(owner=owner)
            self.filter(owner=owner).update(version=F("version") + 1, made_at=Now())
            return self.get(owner=owner)


class WebhookSecret(models.Model):
    """The version of an owner's webhook secret. A secret of version 0 was shown to nobody."""

    owner = models.CharField(max_length=64, unique=True)
    version = models.PositiveIntegerField(default=0)
    made_at = models.DateTimeField(null=True)

    objects = WebhookSecretQuerySet.as_manager()

    def __str__(self) -> str:
        return f"version {self.version} of {self.owner}"

    @property
    def previous_signs_until(self) -> datetime | None:
        """Until when the version before signs too; None where no version was before."""
        return self.made_at + OVERLAP if self.made_at else None

    def versions(self) -> list[int]:
        """Those that sign now, the current one first."""
        until: Any = self.previous_signs_until
        has_previous = until is not None and database_clock.now() < until
        return [self.version, self.version - 1] if has_previous else [self.version]
