"""Celery tasks of access."""

from celery import shared_task
from django.contrib.auth import get_user_model

from inference.models import Batch
from sopllm.access.models import ApiKey


@shared_task(name="access.cancel_batches")
def cancel_batches() -> None:
    """Cancel what goes on for keys that are revoked, and users that are deactivated, or deleted.

    Again and again, since processes know a revoked key for some seconds, and users change anywhere.
    """
    running = Batch.objects.unfinished().exclude(credential="")
    credentials = set(running.values_list("credential", flat=True))
    if not credentials:
        return
    names = [each.partition(":")[2] for each in credentials]
    keys = ApiKey.objects.filter(prefix__in=names, revoked_at=None)
    users = get_user_model().objects.filter(username__in=names, is_active=True)
    known = {f"key:{prefix}" for prefix in keys.values_list("prefix", flat=True)}
    known |= {f"user:{name}" for name in users.values_list("username", flat=True)}
    running.filter(credential__in=credentials - known).cancel()
