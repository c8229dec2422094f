from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps
from django.db.models import OuterRef, Subquery


def take_owners_of_tasks(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Where the task is deleted, its webhook stays with the local owner: signed as before."""
    tasks = apps.get_model("inference", "GenerationTask").objects
    deliveries = apps.get_model("inference", "WebhookDelivery").objects
    deliveries.filter(task_id__in=tasks.values("pk")).update(
        owner=Subquery(tasks.filter(pk=OuterRef("task_id")).values("owner")[:1])
    )


class Migration(migrations.Migration):

    dependencies = [
        ('inference', '0008_fair_queue'),
    ]

    operations = [
        migrations.CreateModel(
            name='WebhookSecret',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('owner', models.CharField(max_length=64, unique=True)),
                ('version', models.PositiveIntegerField(default=0)),
                ('made_at', models.DateTimeField(null=True)),
            ],
        ),
        migrations.AddField(
            model_name='webhookdelivery',
            name='owner',
            field=models.CharField(default='local', max_length=64),
            preserve_default=False,
        ),
        migrations.RunPython(take_owners_of_tasks, migrations.RunPython.noop),
    ]
