"""Typed readers of environment variables; a bad value stops the start with a sentence."""

import os
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


def env_str(name: str, default: str = "") -> str:
    """The variable's text, stripped; `default` when unset or empty."""
    return os.environ.get(name, "").strip() or default


def env_int(name: str, default: int, minimum: int = 0, maximum: int = 2**31) -> int:
    """A whole number within [minimum, maximum]."""
    return int(_number(name, default, minimum, maximum, int, "a whole number"))


def env_float(name: str, default: float, minimum: float = 0.0, maximum: float = 1e12) -> float:
    """A number within [minimum, maximum]."""
    return float(_number(name, default, minimum, maximum, float, "a number"))


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
