"""The gate: whether two prompts that look alike may differ in what they ask.

Sentence vectors rank "disable notifications" beside "enable notifications" and 2014 beside 2018 (measured: near misses have a
median similarity of 0.92, paraphrases of 0.88), so no threshold alone is safe. The gate compares the words. It knows English
and errs towards a miss, which costs one computation; what it lets through wrongly costs a wrong answer.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final, NamedTuple

from reference_impl.caches.semantic.lexicon import (
    ANTONYMS,
    CONTRACTIONS,
    FRAMING,
    NEGATIVE_PREFIXES,
    NEGATORS,
    NUMBER_WORDS,
    SYNONYMS,
    WHY,
)

__all__ = ["difference"]

_WORD: Final = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+", re.UNICODE)
_THOUSANDS: Final = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?")
_DECIMAL: Final = re.compile(r"\d{1,15}(\.\d{1,15})?")
_NUMBER: Final = re.compile(r"\d+(?:[.,:]\d+)*")
_QUOTED: Final = re.compile("(?<!\\w)['\"\u2018\u201c\u00ab](.+?)['\"\u2019\u201d\u00bb](?!\\w)")
_POSSESSIVE: Final = re.compile("['\u2019]s\\b")
# Only these may be a name at the start of a sentence without being known as one from the other prompt.
_SENTENCE_END: Final = ".?!:;\n\"'\u201c\u2018"
_SUFFIXES: Final = (
    "ations",
    "ation",
    "ings",
    "ing",
    "edly",
    "ed",
    "ies",
    "es",
    "s",
    "ly",
    "er",
    "e",
)
_MIN_STEM: Final = 3
_SPECIFIC: Final = WHY | {"where", "when", "who", "whom", "whose"}
_DIRECTIONAL: Final = frozenset(
    [
        "from",
        "to",
        "into",
        "onto",
        "than",
        "before",
        "after",
        "in",
        "per",
        "by",
        "against",
        "over",
        "under",
        "between",
    ]
)


class _Object(NamedTuple):
    """A directional preposition, the content word that follows it, and those that come before it."""

    preposition: str
    thing: str
    before: list[str]


class _Prompt(NamedTuple):
    """A prompt as the rules see it; every list is in the order of the prompt.

    `content`: stems of what is not framing. `names`: those of capitalised words inside a sentence. `answer_kinds`: what follows "which" or "what", as the city of "which city".
    """

    words: list[str]
    numbers: list[str]
    negations: int
    names: list[str]
    quoted: list[str]
    content: list[str]
    objects: list[_Object]
    answer_kinds: frozenset[str]


def difference(first: str, second: str) -> str:
    """Why the two prompts must not share an answer, in a word or two; "" where nothing was found."""
    a, b = _read(first), _read(second)
    if a.words == b.words and a.quoted == b.quoted:
        return ""
    if Counter(a.numbers) != Counter(b.numbers):
        return "numbers"
    if a.negations != b.negations:
        return "negation"
    if a.quoted != b.quoted:
        return "quotation"
    if _contradict(a.words, b.words):
        return "antonyms"
    if _asks_otherwise(a.words, b.words):
        return "question word"
    if _names_differ(a, b):
        return "names"
    if _roles_swapped(a, b):
        return "order"
    return _substitution(a, b)


def _read(prompt: str) -> _Prompt:
    expanded = _POSSESSIVE.sub("", _expand(prompt))
    tokens = [(match.group(), match.start()) for match in _WORD.finditer(expanded)]
    words = [text.lower() for text, _ in tokens]
    names = [
        _stem(text.lower())
        for text, start in tokens
        if text[0].isupper() and text != "I" and _inside_sentence(expanded, start)
    ]
    stems = [_stem(word) if _is_content(word) else "" for word in words]
    return _Prompt(
        words,
        [number for number in map(_number, words) if number],
        sum(word in NEGATORS for word in words),
        names,
        [quoted.lower().strip(" .,!?") for quoted in _QUOTED.findall(prompt)],
        [stem for stem in stems if stem],
        [
            _Object(word, next(filter(None, stems[place:])), stems[:place])
            for place, word in enumerate(words)
            if word in _DIRECTIONAL and any(stems[place:])
        ],
        frozenset(
            stem
            for before, stem in zip(words, stems[1:], strict=False)
            if stem and before in ("which", "what")
        ),
    )


def _is_content(word: str) -> bool:
    return not (word in FRAMING or word in WHY or word in NUMBER_WORDS or _NUMBER.fullmatch(word))


def _expand(prompt: str) -> str:
    text = prompt.replace("\u2019", "'")
    for short, full in CONTRACTIONS.items():
        text = re.sub(rf"{re.escape(short)}\b", full, text, flags=re.IGNORECASE)
    return text


def _number(word: str) -> str:
    """1,200 as 1200, 3.10 as 3.1, three as 3; versions, times and the like as they are written; "" for other words."""
    if word in NUMBER_WORDS:
        return f"{NUMBER_WORDS[word]:.15g}"
    if not _NUMBER.fullmatch(word):
        return ""
    plain = word.replace(",", "") if _THOUSANDS.fullmatch(word) else word
    return f"{float(plain):.15g}" if _DECIMAL.fullmatch(plain) else plain


def _inside_sentence(text: str, start: int) -> bool:
    before = text[:start].rstrip()
    return bool(before) and before[-1] not in _SENTENCE_END


def _stem(word: str) -> str:
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= _MIN_STEM:
            stem = word[: -len(suffix)]
            if suffix == "ies":
                return stem + "y"
            # "running": run
            return stem[:-1] if len(stem) > _MIN_STEM and stem[-1] == stem[-2] else stem
    return word


def _unique(one: list[str], other: list[str]) -> Counter[str]:
    return Counter(one) - Counter(other)


def _contradict(one: list[str], other: list[str]) -> bool:
    mine, yours = _unique(one, other), _unique(other, one)
    for side, opposite in ANTONYMS:
        if (side & mine.keys() and opposite & yours.keys()) or (
            opposite & mine.keys() and side & yours.keys()
        ):
            return True
    return any(
        longer == prefix + shorter
        for word in mine
        for counterpart in yours
        for shorter, longer in ((word, counterpart), (counterpart, word))
        for prefix in NEGATIVE_PREFIXES
        if len(shorter) >= _MIN_STEM
    )


def _names_differ(a: _Prompt, b: _Prompt) -> bool:
    """A capitalised word of either that the other does not have at all, capitalised or not."""
    words_a = {_stem(word) for word in a.words}
    words_b = {_stem(word) for word in b.words}
    return any(name not in words_b for name in a.names) or any(
        name not in words_a for name in b.names
    )


def _asks_otherwise(one: list[str], other: list[str]) -> bool:
    """Where against when, or why against what; "how", "what" and "which" ask for anything."""
    mine, yours = (
        {"why" if word in WHY else word for word in words if word in _SPECIFIC}
        for words in (one, other)
    )
    if "why" in mine ^ yours:
        return True
    return bool(mine and yours and mine.isdisjoint(yours))


def _roles_swapped(a: _Prompt, b: _Prompt) -> bool:
    """From Paris to Madrid against from Madrid to Paris; a landlord sues a tenant against a tenant a landlord.

    Mere rotation is no objection: "in Python, how do I ..." asks the same as "how do I ... in Python".
    """
    return (
        a.numbers != b.numbers
        or _objects_exchanged(a, b)
        or _transposed(_common(a.content, b.content), _common(b.content, a.content))
    )


def _objects_exchanged(a: _Prompt, b: _Prompt) -> bool:
    """What follows a preposition in one prompt comes before it in the other, and the other way round."""
    return any(
        one.preposition == other.preposition
        and one.thing != other.thing
        and one.thing in other.before
        and other.thing in one.before
        for one in a.objects
        for other in b.objects
    )


def _common(one: list[str], other: list[str]) -> list[str]:
    shared = set(one) & set(other)
    return [word for word in one if word in shared]


def _transposed(one: list[str], other: list[str]) -> bool:
    """Whether two words have changed places around others that have not."""
    if len(one) != len(other):
        return False
    moved = [place for place, (x, y) in enumerate(zip(one, other, strict=True)) if x != y]
    if len(moved) != 2:
        return False
    first, second = moved
    return second - first > 1 and one[first] == other[second] and one[second] == other[first]


def _substitution(a: _Prompt, b: _Prompt) -> str:
    """One content word against another that is no synonym of it, or one more on one side only."""
    mine, yours = _unique(a.content, b.content), _unique(b.content, a.content)
    if not mine and not yours:
        return ""
    if not mine or not yours:
        # "Which city is ...": what kind of thing is asked for restricts nothing.
        kinds = a.answer_kinds if mine else b.answer_kinds
        return "qualifier" if (mine or yours).keys() - kinds else ""
    if mine.total() == 1 and yours.total() == 1:
        (word,), (counterpart,) = mine, yours
        if not _synonymous(word, counterpart):
            return "one word"
    return ""


_SYNONYM_STEMS: Final = tuple(frozenset(map(_stem, words)) for words in SYNONYMS)


def _synonymous(one: str, other: str) -> bool:
    shared = min(len(one), len(other), 5)
    if one[:shared] == other[:shared] and shared >= 4:
        return True  # inflections and derivations that the stemmer leaves apart: deliver, delivery
    return any(one in stems and other in stems for stems in _SYNONYM_STEMS)
