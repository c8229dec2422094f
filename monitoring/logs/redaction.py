"""Takes secrets out of text that other people may read: passwords in URLs, keys, tokens."""

import re

_HIDDEN = "***"

# What the names of settings, headers and query parameters with secrets end in.
_NAME_ENDINGS = (
    r"(?:api|secret|private|access|auth|encryption)[_-]?key|secret|password|passwd|token"
)
# What keys of known services look like, and JSON web tokens.
_KEY_SHAPES = (
    r"\b(?:sk|pk|rk|xox[abp])-[\w-]{12,}"
    r"|\b(?:hf|gsk|gh[pousr]|github_pat|glpat|xai|r8)[_-]\w{12,}"
    r"|\bAIza[\w-]{30,}"
    r"|\bAKIA[A-Z0-9]{12,}"
    r"|\bwhsec_[\w+/=-]{12,}"
    r"|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"
)
_RULES = [
    # redis://:password@host, https://user:password@host, https://token@host
    (re.compile(r"(?<=://)[^\s/'\"]+@"), f"{_HIDDEN}@"),
    (re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE), rf"\1 {_HIDDEN}"),
    (
        re.compile(rf"((?:{_NAME_ENDINGS})\b['\"]?\s*[:=]\s*['\"]?)[^\s'\"&,;)}}]+", re.IGNORECASE),
        rf"\1{_HIDDEN}",
    ),
    (re.compile(_KEY_SHAPES), _HIDDEN),
]


def redact(text: str) -> str:
    """Replace whatever looks like a secret by ***."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
