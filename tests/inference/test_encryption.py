"""Secrets at rest: what opens them, and how their keys are changed."""

from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings

from inference import encryption
from inference.encryption import DecryptionError
from inference.models import RegisteredModel

SECRET = "sk-proj-0123456789abcdef"
OLD, NEW = 40 * "old ", 40 * "new "


def test_encrypted_text_comes_back_and_cannot_be_read_before() -> None:
    encrypted = encryption.encrypt(SECRET)
    assert encryption.decrypt(encrypted) == SECRET
    assert SECRET not in encrypted
    assert encrypted.isascii()


def test_same_text_is_encrypted_differently_each_time() -> None:
    assert encryption.encrypt(SECRET) != encryption.encrypt(SECRET)


def test_changed_text_is_refused(settings: Settings) -> None:
    encrypted = encryption.encrypt(SECRET)
    for changed in (
        encrypted[:-4],
        encrypted[:40] + "AAAA" + encrypted[44:],
        "",
        "plain text",
        "ä",
    ):
        with pytest.raises(DecryptionError):
            encryption.decrypt(changed)


def test_former_keys_decrypt_and_the_first_encrypts(settings: Settings) -> None:
    settings.ENCRYPTION_KEYS = [OLD]
    encrypted_by_old = encryption.encrypt(SECRET)
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    assert encryption.decrypt(encrypted_by_old) == SECRET
    encrypted_by_new = encryption.encrypt(SECRET)
    settings.ENCRYPTION_KEYS = [NEW]
    assert encryption.decrypt(encrypted_by_new) == SECRET
    with pytest.raises(DecryptionError, match="put that one back") as caught:
        encryption.decrypt(encrypted_by_old)
    assert SECRET not in str(caught.value)


def test_secret_key_encrypts_until_there_are_others_and_decrypts_after(settings: Settings) -> None:
    settings.ENCRYPTION_KEYS = []
    encrypted = encryption.encrypt(SECRET)
    settings.ENCRYPTION_KEYS = [NEW]
    assert encryption.decrypt(encrypted) == SECRET
    settings.SECRET_KEY = "another"
    with pytest.raises(DecryptionError):
        encryption.decrypt(encrypted)


def test_one_text_makes_different_keys_for_different_uses(settings: Settings) -> None:
    settings.ENCRYPTION_KEYS = []
    encrypted = encryption.encrypt(SECRET)
    settings.ENCRYPTION_KEYS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another"
    with pytest.raises(DecryptionError):
        encryption.decrypt(encrypted)


def cloud_model(name: str, encrypted_api_key: str) -> RegisteredModel:
    return RegisteredModel.objects.create(
        name=name, provider="openai", encrypted_api_key=encrypted_api_key
    )


def test_rotation_encrypts_all_keys_anew(settings: Settings, db: None) -> None:
    settings.ENCRYPTION_KEYS = [OLD]
    one, two = (cloud_model(name, encryption.encrypt(SECRET + name)) for name in ("one", "two"))
    keyless = cloud_model("keyless", "")
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    output = StringIO()
    call_command("rotate_keys", stdout=output)
    assert output.getvalue() == "2 keys of models are encrypted anew.\n"
    settings.ENCRYPTION_KEYS = [NEW]
    for model in (one, two, keyless):
        model.refresh_from_db()
    assert encryption.decrypt(one.encrypted_api_key) == SECRET + "one"
    assert encryption.decrypt(two.encrypted_api_key) == SECRET + "two"
    assert keyless.encrypted_api_key == ""


def test_rotation_names_the_models_whose_key_is_lost(settings: Settings, db: None) -> None:
    settings.ENCRYPTION_KEYS = [OLD]
    lost = cloud_model("lost", encryption.encrypt(SECRET))
    settings.ENCRYPTION_KEYS = [NEW]
    kept = cloud_model("kept", encryption.encrypt(SECRET))
    errors = StringIO()
    with pytest.raises(CommandError, match="lost"):
        call_command("rotate_keys", stdout=StringIO(), stderr=errors)
    assert "lost: It was encrypted with a key that is not set" in errors.getvalue()
    before = lost.encrypted_api_key, kept.encrypted_api_key
    lost.refresh_from_db()
    kept.refresh_from_db()
    assert lost.encrypted_api_key == before[0]
    assert kept.encrypted_api_key != before[1]
    assert encryption.decrypt(kept.encrypted_api_key) == SECRET
