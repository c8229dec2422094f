"""Seals all stored secrets anew with the first of ENCRYPTION_KEYS."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from inference import encryption
from inference.encryption import SecretBoxError
from inference.models import RegisteredModel


class Command(BaseCommand):
    help = (
        "Seal all stored secrets anew with the first of ENCRYPTION_KEYS; after that, the keys "
        "behind it are needed no more."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        models = RegisteredModel.objects.exclude(encrypted_api_key="").order_by("name")
        lost = [model.name for model in models if not self.rotate(model)]
        self.stdout.write(f"{len(models) - len(lost)} keys of models are sealed anew.")
        if lost:
            names = ", ".join(lost)
            raise CommandError(f"These models keep keys that cannot be opened: {names}.")

    def rotate(self, model: RegisteredModel) -> bool:
        """False when its key is lost. A model that was registered anew meanwhile is left alone."""
        sealed = model.encrypted_api_key
        try:
            anew = encryption.reseal(sealed)
        except SecretBoxError as error:
            self.stderr.write(f"{model.name}: {error}")
            return False
        RegisteredModel.objects.filter(pk=model.pk, encrypted_api_key=sealed).update(
            encrypted_api_key=anew
        )
        return True
