"""Glob patterns over cache keys, with the rules of Redis' `SCAN MATCH`, so that every level forgets the same keys.

`*` any characters, `?` one, `[abc]`, `[a-f]`, `[^a]` one of a class, `\\` takes the next character literally. Python's
`fnmatch` differs (`[!a]`, no escape), hence a translation of our own.
"""

from __future__ import annotations

import re
from typing import Final

from reference_impl.caches.port import PatternTooBroad

__all__ = ["compile_glob", "escape_glob", "is_literal", "refuse_broad"]

_SPECIAL: Final = re.compile(r"([*?\[\]\\^])")


def escape_glob(text: str) -> str:
    """A pattern that matches exactly `text`."""
    return _SPECIAL.sub(r"\\\1", text)


def is_literal(pattern: str) -> bool:
    """Whether `pattern` can match only itself."""
    return _SPECIAL.search(pattern) is None


def refuse_broad(pattern: str) -> None:
    """Raise ValueError for an empty pattern, and `PatternTooBroad` for one that holds nothing but wildcards."""
    if not pattern:
        raise ValueError("the pattern is empty: it names no key")
    if not pattern.strip("*?"):
        raise PatternTooBroad(
            f"pattern {pattern!r} matches every key: pass everything=True if that is meant"
        )


def compile_glob(pattern: str) -> re.Pattern[str]:
    """A regular expression for `fullmatch`; raises ValueError where a class is not closed."""
    parts: list[str] = []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        position += 1
        if character == "*":
            parts.append(".*")
        elif character == "?":
            parts.append(".")
        elif character == "[":
            translated, position = _character_class(pattern, position)
            parts.append(translated)
        elif character == "\\" and position < len(pattern):
            parts.append(re.escape(pattern[position]))
            position += 1
        else:
            parts.append(re.escape(character))
    return re.compile("".join(parts), re.DOTALL)


def _character_class(pattern: str, position: int) -> tuple[str, int]:
    """The class that opens before `position` as a regular expression, and the position after its bracket."""
    negated = pattern.startswith("^", position)
    position += negated
    members: list[str] = []
    while position < len(pattern) and pattern[position] != "]":
        low, position = _class_member(pattern, position)
        if pattern.startswith("-", position) and position + 1 < len(pattern):
            high, position = _class_member(pattern, position + 1)
            low, high = min(low, high), max(low, high)
            members.append(f"{re.escape(low)}-{re.escape(high)}")
        else:
            members.append(re.escape(low))
    if position >= len(pattern):
        raise ValueError(f"pattern {pattern!r}: '[' is not closed: add ']' or write '\\['")
    if not members:
        return ("." if negated else "(?!)"), position + 1
    return f"[{'^' if negated else ''}{''.join(members)}]", position + 1


def _class_member(pattern: str, position: int) -> tuple[str, int]:
    if pattern[position] == "\\" and position + 1 < len(pattern):
        position += 1
    return pattern[position], position + 1
