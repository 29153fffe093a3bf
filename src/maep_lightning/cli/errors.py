"""Messages for people: one line on what is wrong, one on what to do, exit code 2, no traceback.

`JSONARGPARSE_DEBUG=1` in the environment gives the traceback back.
"""

import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn


def debugging() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get("JSONARGPARSE_DEBUG", "").lower() not in ("", "0", "false")


def fail(problem: str, hint: str = "") -> NoReturn:
    """Print the problem and what to do about it to stderr, and leave with exit code 2."""
    print(f"error: {problem}" + (f"\n  {hint}" if hint else ""), file=sys.stderr)
    raise SystemExit(2)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint: the valid names that look like `name`, or all of them where none does and they are few."""
    known = sorted(set(valid))
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known)}" if 0 < len(known) <= 40 else ""
