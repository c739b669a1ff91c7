"""From pydantic's errors to one line: the field's path, what is wrong with it, what was found, what is allowed."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

__all__ = ["diagnose", "is_name", "unknown"]

_SHOWN = 12


def unknown(what: str, found: str, allowed: Iterable[str]) -> str:
    """`unknown field 'x': did you mean 'y'?`, or the names that exist."""
    names = list(allowed)
    if not is_name(found):
        return f"unknown {what} (not shown: it looks like no name){_listed(names, ': expected one of ')}"
    close = difflib.get_close_matches(found, names, n=1, cutoff=0.6)
    if close:
        return f"unknown {what} {found!r}: did you mean {close[0]!r}?" + _listed(names, " Known: ")
    return f"unknown {what} {found!r}" + _listed(names, ": expected one of ")


def is_name(text: str) -> bool:
    """Whether a name that was read may be shown: a file of something else, secrets perhaps, is not to end up in a log."""
    return re.fullmatch(r"[\w .,/()\[\]-]{0,80}", text) is not None


def _listed(names: list[str], lead: str) -> str:
    return f"{lead}{', '.join(names)}" if len(names) <= 2 * _SHOWN else ""


def diagnose(error: ValidationError, model: type[BaseModel], document: Any) -> str:
    """The most telling of pydantic's complaints about `document`, read as a `model`, in one line."""
    complaints = error.errors(include_url=False)
    # A misspelt field shows twice, as one too many and one missing: the spelling is the news.
    first = next((c for c in complaints if c["type"] == "extra_forbidden"), complaints[0])
    path, owner, annotation = _locate(first["loc"], model, document)
    field = ".".join(path) or "scenario"
    kind = first["type"]
    context = first.get("ctx", {})
    if kind == "extra_forbidden":
        text = f"{'.'.join(path[:-1]) or 'scenario'}: {unknown('field', path[-1], _names(owner))}"
    elif kind == "missing":
        text = f"{field}: missing; it has no default"
    elif kind == "union_tag_not_found":
        text = f"{field}: 'kind' is missing{_found(first['input'])}; expected one of {_tags(annotation)}"
    elif kind == "union_tag_invalid":
        tags = context.get("expected_tags", "").replace("'", "").split(", ")
        text = f"{field}.kind: {unknown('kind', str(context.get('tag')), tags)}"
    elif kind == "literal_error":
        allowed = [value.strip("' ") for value in _split(str(context.get("expected", "")))]
        text = f"{field}: {unknown('value', str(first['input']), allowed)}"
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        text = f"{field}: must be a group of fields (name: value){_found(first['input'])}"
    elif kind == "too_short":
        text = (
            f"{field}: must have at least {context.get('min_length')} item{_found(first['input'])}"
        )
    elif kind == "value_error":
        text = f"{field + ': ' if path else ''}{context.get('error', first['msg'])}"
    else:
        text = f"{field}: {_plain(first['msg'])}{_found(first['input'])}"
    more = len(complaints) - 1
    return " ".join(text.split()) + (f" (and {more} more)" if more else "")


def _plain(message: str) -> str:
    return message.replace("Input should be", "must be", 1).replace("Value error, ", "")


def _found(value: Any) -> str:
    shown = repr(value)
    return f", found {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _split(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").split(", ")


def _locate(
    location: tuple[int | str, ...], model: type[BaseModel], document: Any
) -> tuple[list[str], Any, Any]:
    """The path as the user writes it (without pydantic's tags), the model that holds its last field, and its type."""
    path: list[str] = []
    annotation: Any = model
    owner: Any = model
    here = document
    for part in location:
        annotation = _choose(annotation, here)
        if isinstance(part, int):
            path.append(str(part))
            owner, annotation = annotation, _item(annotation)
            here = here[part] if isinstance(here, (list, tuple)) and part < len(here) else None
            continue
        field = _field(annotation, part)
        known = isinstance(here, dict) and part in here
        if field is None and not (known and _is_model(annotation)):
            continue  # a tag of a union or the name of a validator
        path.append(part)
        owner, annotation = annotation, field
        here = here.get(part) if isinstance(here, dict) else None
    return path, owner, annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _field(annotation: Any, name: str) -> Any:
    """The type of a model's field, None where it has no such field."""
    if not _is_model(annotation):
        return None
    for field_name, field in annotation.model_fields.items():
        if name in (field_name, field.alias):
            return field.annotation
    return None


def _members(annotation: Any) -> list[Any]:
    """The models of a union, through Annotated and nested unions."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _choose(annotation: Any, value: Any) -> Any:
    """The member of a union that `value` says it is by its `kind`."""
    members = [m for m in _members(annotation) if m is not type(None)]
    if len(members) == 1:
        return members[0]
    kind = value.get("kind") if isinstance(value, dict) else None
    for member in members:
        if _is_model(member) and kind in _kinds(member):
            return member
    return annotation


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    field = model.model_fields.get("kind")
    if field is None or get_origin(field.annotation) is not Literal:
        return ()
    return get_args(field.annotation)


def _item(annotation: Any) -> Any:
    arguments = get_args(annotation)
    return arguments[0] if arguments else None


def _names(owner: Any) -> list[str]:
    if not _is_model(owner):
        return []
    return [field.alias or name for name, field in owner.model_fields.items()]


def _tags(annotation: Any) -> str:
    kinds = [k for m in _members(annotation) if _is_model(m) for k in _kinds(m)]
    return ", ".join(str(kind) for kind in kinds)
