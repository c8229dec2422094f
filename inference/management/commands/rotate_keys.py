"""Encrypts all stored secrets anew with the first of ENCRYPTION_KEYS."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from inference import encryption
from inference.encryption import DecryptionError
from inference.models import RegisteredModel


class Command(BaseCommand):
    help = (
        "Encrypt all stored secrets anew with the first of ENCRYPTION_KEYS; after that, the keys "
        "behind it are needed no more."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        models = RegisteredModel.objects.exclude(encrypted_api_key="").order_by("name")
        lost = [model.name for model in models if not self.rotate(model)]
        self.stdout.write(f"{len(models) - len(lost)} keys of models are encrypted anew.")
        if lost:
            names = ", ".join(lost)
            raise CommandError(f"These models keep keys that cannot be decrypted: {names}.")

    def rotate(self, model: RegisteredModel) -> bool:
        """False when its key is lost. A model that was registered anew meanwhile is left alone."""
        encrypted = model.encrypted_api_key
        try:
            anew = encryption.rotate(encrypted)
        except DecryptionError as error:
            self.stderr.write(f"{model.name}: {error}")
            return False
        RegisteredModel.objects.filter(pk=model.pk, encrypted_api_key=encrypted).update(
            encrypted_api_key=anew
        )
        return True
