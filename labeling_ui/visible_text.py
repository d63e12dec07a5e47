"""Text as a labeler should see it: invisible and direction-changing characters made visible.

Such characters are either an accident of the model or an attempt to show people something other
than what is there; either way the person who judges must see them.
"""

import re

# Control characters but tab and newline; soft hyphen; zero-width space, word joiner and friends;
# bidirectional embeddings, overrides and isolates; byte order mark; interlinear and tag
# characters; unpaired surrogates. Zero-width joiners stay: scripts and emoji need them.
_INVISIBLE = re.compile(
    "[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f"
    "\u2028\u2029\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def visible_text(text: str) -> str:
    """The text with each invisible character as its code point, e.g. `[U+202E]`.

    All line ends become newlines. Nothing else changes: no markup is read or removed.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return _INVISIBLE.sub(lambda match: f"[U+{ord(match.group()):04X}]", lines)
