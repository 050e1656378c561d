"""Text that is kept without the secrets that a command, an error or an address may hold."""

import os
import re

HIDDEN = "***"
SHORTEST = 8  # characters of a variable's value: shorter ones, such as "false", are found in any text
# Names of variables that hold secrets. TOKENIZERS_PARALLELISM does not.
HOLDS = re.compile(r"TOKEN(?!I)|SECRET|PASSW|API_?KEY|ACCESS_KEY|PRIVATE_KEY", re.IGNORECASE)
_SECRET = "|".join(
    (
        r"(?<=://)[^/\s'\"@]+(?=@)",  # user:password of an address
        r"(?<=[?&])(?P<key>[\w-]*(?:token|secret|passw|key|signature|credential)[\w-]*=)[^&\s'\"#]+",  # of its query
        r"\bhf_[A-Za-z0-9]{16,}",
        r"\bAKIA[A-Z0-9]{16}\b",
    )
)


def without_secrets(text: str) -> str:
    """The text without passwords and tokens in addresses, and without what the environment's secret variables hold."""
    values = {value for name, value in os.environ.items() if HOLDS.search(name) and len(value) >= SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return re.sub(_SECRET, lambda found: (found["key"] or "") + HIDDEN, text, flags=re.IGNORECASE)
