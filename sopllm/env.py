"""Typed readers of environment variables; a bad value stops the start with a sentence."""

import os
import re
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}
# The variables that hold secrets.
SECRET = re.compile(
    r"SECRET_KEY|ENCRYPTION_KEYS|WEBHOOK_SECRETS|DATABASE_URL|REDIS_URL|HF_TOKEN"
    r"|FLOWER_BASIC_AUTH|LANGFUSE_(SECRET|PUBLIC)_KEY|[A-Z][A-Z0-9_]*_API_KEY"
)


def read_secret_files() -> None:
    """Set each secret of which NAME_FILE names a file, as those of Docker, to the file's text."""
    for variable, path in list(os.environ.items()):
        name = variable.removesuffix("_FILE")
        if name == variable or not path.strip() or not SECRET.fullmatch(name):
            continue
        try:
            text = Path(path.strip()).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as exc:
            raise ImproperlyConfigured(f"{variable}: {path} cannot be read: {exc}.") from None
        if not text:
            raise ImproperlyConfigured(f"{variable}: {path} is empty: put the secret into it.")
        # A process that another one has started may have both, which then say the same.
        if env_str(name) not in ("", text):
            raise ImproperlyConfigured(f"{name} and {variable} are both set: keep one of them.")
        os.environ[name] = text


def env_str(name: str, default: str = "") -> str:
    """The variable's text, stripped; `default` when unset or empty."""
    return os.environ.get(name, "").strip() or default


def env_int(name: str, default: int, minimum: int = 0, maximum: int = 2**31) -> int:
    """A whole number within [minimum, maximum]."""
    return int(_number(name, default, minimum, maximum, int, "a whole number"))


def env_float(name: str, default: float, minimum: float = 0.0, maximum: float = 1e12) -> float:
    """A number within [minimum, maximum]."""
    return float(_number(name, default, minimum, maximum, float, "a number"))


def env_limit(
    name: str, parse: type[int] | type[float], minimum: float, maximum: float
) -> float | None:
    """A number within [minimum, maximum]; None when unset or empty: no limit."""
    kind = "a whole number" if parse is int else "a number"
    return _number(name, 0, minimum, maximum, parse, kind) if env_str(name) else None


def env_bool(name: str, default: bool) -> bool:
    """1/true/yes/on or 0/false/no/off, in any case."""
    text = env_str(name).lower()
    if not text:
        return default
    if text not in _TRUE | _FALSE:
        raise ImproperlyConfigured(f"{name} must be true or false, not {text!r}.")
    return text in _TRUE


def env_path(name: str, default: Path) -> Path:
    """An absolute path; a relative one counts from the working directory."""
    return Path(env_str(name, str(default))).expanduser().absolute()


def env_list(name: str, default: list[str]) -> list[str]:
    """A comma-separated list, blanks dropped."""
    text = env_str(name)
    return [item.strip() for item in text.split(",") if item.strip()] if text else default


def env_ints(name: str, default: list[int], minimum: int, maximum: int) -> list[int]:
    """A comma-separated list of different whole numbers within [minimum, maximum]."""
    texts = env_list(name, [])
    if not all(text.isdecimal() and minimum <= int(text) <= maximum for text in texts):
        raise ImproperlyConfigured(
            f"{name} must be whole numbers within {minimum}..{maximum}, with commas in between, "
            f"not {env_str(name)}."
        )
    numbers = [int(text) for text in texts]
    if len(set(numbers)) < len(numbers):
        raise ImproperlyConfigured(f"{name} names a number twice: {env_str(name)}.")
    return numbers or default


def env_choice(name: str, default: str, choices: tuple[str, ...]) -> str:
    """One of `choices`."""
    value = env_str(name, default)
    if value not in choices:
        raise ImproperlyConfigured(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
    return value


def _number(
    name: str,
    default: float,
    minimum: float,
    maximum: float,
    parse: type[int] | type[float],
    kind: str,
) -> float:
    text = env_str(name)
    if not text:
        return default
    try:
        value = parse(text)
    except ValueError:
        raise ImproperlyConfigured(f"{name} must be {kind}, not {text!r}.") from None
    if not minimum <= value <= maximum:
        raise ImproperlyConfigured(f"{name} must lie in {minimum}..{maximum}, not {text}.")
    return value
