"""Encrypts all stored secrets anew with the first of ENCRYPTION_KEYS."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Q

from inference import encryption
from inference.encryption import DecryptionError
from inference.models import RegisteredModel


class Command(BaseCommand):
    help = (
        "Encrypt all stored secrets anew with the first of ENCRYPTION_KEYS; after that, the keys "
        "behind it are needed no more."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        with_keys = ~Q(encrypted_api_key="") | ~Q(encrypted_endpoint_keys={})
        models = RegisteredModel.objects.filter(with_keys).order_by("name")
        nums = {model.name: self.rotate(model) for model in models}
        lost = [name for name, num in nums.items() if not num]
        self.stdout.write(f"{sum(nums.values())} keys of models are encrypted anew.")
        if lost:
            names = ", ".join(lost)
            raise CommandError(f"These models keep keys that cannot be decrypted: {names}.")

    def rotate(self, model: RegisteredModel) -> int:
        """How many keys it has; 0 when one is lost.

        A model that was registered anew meanwhile is left alone.
        """
        key, of_endpoints = model.encrypted_api_key, model.encrypted_endpoint_keys
        try:
            anew = encryption.rotate(key) if key else ""
            of_endpoints_anew = {
                name: encryption.rotate(each) for name, each in of_endpoints.items()
            }
        except DecryptionError as error:
            self.stderr.write(f"{model.name}: {error}")
            return 0
        RegisteredModel.objects.filter(
            pk=model.pk, encrypted_api_key=key, encrypted_endpoint_keys=of_endpoints
        ).update(encrypted_api_key=anew, encrypted_endpoint_keys=of_endpoints_anew)
        return bool(key) + len(of_endpoints)
