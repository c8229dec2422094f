from django.db import migrations, models
from django.db.migrations.state import StateApps
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.models import F, Q


def split_leases(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Of what a worker holds, what was the time of the next attempt is the end of its lease."""
    downloads = apps.get_model("inference", "ModelDownload").objects.exclude(worker="")
    deliveries = apps.get_model("inference", "WebhookDelivery").objects.filter(status="delivering")
    for held in (downloads, deliveries):
        held.update(lease_until=F("due_at"), due_at=None)


def join_leases(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    for name in ("ModelDownload", "WebhookDelivery"):
        held = apps.get_model("inference", name).objects.exclude(lease_until=None)
        held.update(due_at=F("lease_until"))


class Migration(migrations.Migration):

    dependencies = [
        ('inference', '0006_downloads'),
    ]

    operations = [
        migrations.RemoveIndex(model_name='generationtask', name='task_lease'),
        migrations.RenameField(model_name='generationtask', old_name='rung_at', new_name='enqueued_at'),
        migrations.AddField(model_name='generationtask', name='due_at', field=models.DateTimeField(blank=True, null=True)),
        migrations.AddIndex(model_name='generationtask', index=models.Index(condition=Q(('lease_until__isnull', False)), fields=['lease_until'], name='generationtask_lease')),

        migrations.RemoveIndex(model_name='modeldownload', name='download_due'),
        migrations.AlterModelOptions(name='modeldownload', options={}),
        migrations.RenameField(model_name='modeldownload', old_name='next_attempt_at', new_name='due_at'),
        migrations.AddField(model_name='modeldownload', name='lease_until', field=models.DateTimeField(blank=True, null=True)),

        migrations.RemoveIndex(model_name='webhookdelivery', name='webhook_due'),
        migrations.RenameField(model_name='webhookdelivery', old_name='next_attempt_at', new_name='due_at'),
        migrations.RenameField(model_name='webhookdelivery', old_name='num_attempts', new_name='attempt'),
        migrations.AddField(model_name='webhookdelivery', name='lease_until', field=models.DateTimeField(blank=True, null=True)),
        migrations.AddField(model_name='webhookdelivery', name='worker', field=models.CharField(blank=True, default='', max_length=255), preserve_default=False),

        migrations.RunPython(split_leases, join_leases),

        migrations.AddIndex(model_name='modeldownload', index=models.Index(condition=Q(('lease_until__isnull', False)), fields=['lease_until'], name='modeldownload_lease')),
        migrations.AddIndex(model_name='modeldownload', index=models.Index(fields=['due_at'], name='download_due')),
        migrations.AddIndex(model_name='webhookdelivery', index=models.Index(condition=Q(('lease_until__isnull', False)), fields=['lease_until'], name='webhookdelivery_lease')),
        migrations.AddIndex(model_name='webhookdelivery', index=models.Index(condition=Q(('due_at__isnull', False)), fields=['attempt', 'due_at'], name='webhook_due')),

        migrations.RenameField(model_name='registeredmodel', old_name='sealed_api_key', new_name='encrypted_api_key'),
    ]
