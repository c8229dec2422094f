"""Secrets at rest: encrypted before they go into the database, decrypted where they are used."""

import base64
from functools import cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

_KEY_BYTES = 32
# Each use of a text as a key has a label of its own, so that no two uses share a key. The labels
# stay as they are: stored secrets were encrypted with them.
_OF_ENCRYPTION_KEYS = b"sopllm secret box, ENCRYPTION_KEYS"
_OF_SECRET_KEY = b"sopllm secret box, SECRET_KEY"
_NO_KEY = (
    "It was encrypted with a key that is not set: put that one back behind the others of "
    "ENCRYPTION_KEYS (or back into SECRET_KEY), or store the secret anew."
)


class DecryptionError(Exception):
    """A secret that none of the keys decrypts; the message says what to do."""


def encrypt(text: str) -> str:
    """The text, encrypted and authenticated with the first key: ASCII, different each time."""
    return _fernets().encrypt(text.encode()).decode()


def decrypt(encrypted: str) -> str:
    """The text that was encrypted with any of the keys. Raises DecryptionError."""
    try:
        return _fernets().decrypt(encrypted.encode()).decode()
    except InvalidToken as error:
        raise DecryptionError(_NO_KEY) from error


def rotate(encrypted: str) -> str:
    """The same secret, encrypted with the first key. Raises DecryptionError."""
    try:
        return _fernets().rotate(encrypted.encode()).decode()
    except InvalidToken as error:
        raise DecryptionError(_NO_KEY) from error


def _fernets() -> MultiFernet:
    return _fernets_of(tuple(settings.ENCRYPTION_KEYS), settings.SECRET_KEY)


@cache
def _fernets_of(encryption_keys: tuple[str, ...], secret_key: str) -> MultiFernet:
    """SECRET_KEY comes last: what it encrypted while there was no other key stays readable."""
    keys = [_fernet(text, _OF_ENCRYPTION_KEYS) for text in encryption_keys]
    return MultiFernet([*keys, _fernet(secret_key, _OF_SECRET_KEY)])


def _fernet(text: str, label: bytes) -> Fernet:
    """HKDF is for texts that cannot be guessed; it would not make a password strong."""
    kdf = HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=label)
    return Fernet(base64.urlsafe_b64encode(kdf.derive(text.encode())))
