"""API keys, of which the database has digests alone."""

import hashlib
import re
import secrets
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import BaseValidator, MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from monitoring.api.principal import OWNER_PATTERN, RESERVED_OWNERS, Limits, Principal, Scope

KEY_START = "sopllm_"
KEY_PATTERN = re.compile(rf"{KEY_START}([0-9a-f]{{8}})_[A-Za-z0-9_-]{{43}}")

_LAST_USE_EVERY = timedelta(minutes=1)


def digest_of(key: str) -> str:
    """SHA-256 in hex: of 256 random bits nobody finds the key, so no slower hash is needed."""
    return hashlib.sha256(key.encode()).hexdigest()


def check_owner(owner: str) -> None:
    """Raise ValidationError unless it can be the name of an owner."""
    if owner in RESERVED_OWNERS or not OWNER_PATTERN.fullmatch(owner):
        raise ValidationError(
            "An owner has 1 to 63 of a-z, 0-9, '.', '_' and '-', begins with a letter or digit, "
            "and is not 'local'."
        )


def check_scopes(scopes: Any) -> None:
    """Raise ValidationError unless it is a list of scopes."""
    known = list(Scope)
    is_list = isinstance(scopes, list) and scopes
    if not is_list or any(scope not in known for scope in scopes):
        raise ValidationError(f"Give a list of scopes: {', '.join(known)}.")


def within(least: float, most: float) -> list[BaseValidator]:
    """The validators of a limit."""
    return [MinValueValidator(least), MaxValueValidator(most)]


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    def active(self) -> "ApiKeyQuerySet":
        """Those that let somebody in now."""
        return self.filter(Q(expires_at=None) | Q(expires_at__gt=Now()), revoked_at=None)

    def make(self, owner: str, scopes: Iterable[str], **fields: Any) -> tuple["ApiKey", str]:
        """A new key, and its text, which can't be had again. Raises ValidationError."""
        prefix = secrets.token_hex(4)
        text = f"{KEY_START}{prefix}_{secrets.token_urlsafe(32)}"
        key = ApiKey(
            prefix=prefix,
            digest=digest_of(text),
            owner=owner,
            scopes=sorted(set(scopes)),
            **fields,
        )
        key.full_clean()
        key.save(force_insert=True)
        return key, text

    def find(self, digest: str) -> Principal | None:
        """Whom the key of that digest lets in; None for an unknown, revoked or expired one.

        Records the use, once a minute.
        """
        key = self.active().filter(digest=digest).first()
        if key is None:
            return None
        now = timezone.now()
        if key.last_used_at is None or key.last_used_at < now - _LAST_USE_EVERY:
            self.filter(pk=key.pk).update(last_used_at=now)
        return key.principal()

    def revoke(self) -> int:
        """Let these in no more; returns how many could still come in."""
        return self.filter(revoked_at=None).update(revoked_at=Now())


class ApiKey(models.Model):
    """A key that lets in as its owner, with scopes and limits; null: what DEFAULT_LIMITS says.

    Tasks and tokens are counted by owner, so that a second key of the same owner, as during a
    rotation, allows no more of them.
    """

    prefix = models.CharField(max_length=8, unique=True, editable=False)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    owner = models.CharField(max_length=63, validators=[check_owner], db_index=True)
    name = models.CharField(max_length=100, blank=True, help_text="What it is for.")
    scopes = models.JSONField(default=list, validators=[check_scopes])
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)

    requests_per_second = models.FloatField(null=True, blank=True, validators=within(0.01, 100_000))
    max_pending_tasks = models.PositiveIntegerField(
        null=True, blank=True, validators=within(0, 2**31 - 1)
    )
    max_running_tasks = models.PositiveIntegerField(
        null=True, blank=True, validators=within(1, 2**31 - 1)
    )
    max_priority = models.FloatField(null=True, blank=True, validators=within(0, 100))
    max_tokens_per_day = models.PositiveBigIntegerField(
        null=True, blank=True, validators=within(0, 2**53)
    )
    max_usd_per_month = models.FloatField(null=True, blank=True, validators=within(0, 1e9))
    max_open_streams = models.PositiveIntegerField(
        null=True, blank=True, validators=within(0, 2**31 - 1)
    )
    weight = models.FloatField(null=True, blank=True, validators=within(0.01, 1000))

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{KEY_START}{self.prefix}_… of {self.owner}"

    def principal(self) -> Principal:
        """Whom it lets in."""
        limits = {
            name: default if (own := getattr(self, name)) is None else own
            for name, default in settings.DEFAULT_LIMITS.items()
        }
        return Principal(
            name=self.prefix,
            owner=self.owner,
            scopes=frozenset(map(Scope, self.scopes)),
            limits=Limits(**limits),
            key_digest=self.digest,
        )
