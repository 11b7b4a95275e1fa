"""Text of a file in words of ours."""

import re
from typing import Final

_LONGEST: Final = 64


def shown(written: str) -> str:
    """What is written, in quotes, in a form that a sentence can hold.

    Letters beyond ASCII become question marks, since among them are those that turn the order of a line or are not
    seen, and the text is cut where it is longer than any value that is wanted.
    """
    return repr(re.sub(r"[^\x20-\x7e]", "?", written[:_LONGEST]))
