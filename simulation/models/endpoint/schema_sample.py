"""A small value that satisfies a JSON schema, always the same one: the input of a mock's tool calls.

Covers what tool definitions use: type, properties, required, items, enum, const, default, anyOf/oneOf/allOf, $ref, length
and number bounds, and the common string formats. Optional properties are left out. `pattern` is not solved.
"""

from __future__ import annotations

import math
from typing import Any, Final

__all__ = ["sample_of"]

_MAX_DEPTH: Final = 64

_FORMATS: Final = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "user@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def sample_of(schema: Any) -> Any:
    """A value that satisfies `schema`."""
    return _sample(schema, schema, 0)


def _resolve(reference: str, root: Any) -> Any:
    """The subschema at a local pointer (`#/$defs/Name`); anything goes where it leads nowhere."""
    target = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if not name:
            continue
        if not isinstance(target, dict) or name not in target:
            return {}
        target = target[name]
    return target


def _sample(schema: Any, root: Any, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return None
    if isinstance(schema.get("$ref"), str):
        return _sample(_resolve(schema["$ref"], root), root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    for name in ("anyOf", "oneOf"):
        choices = schema.get(name)
        if isinstance(choices, list) and choices:
            rest = {k: v for k, v in schema.items() if k != name}
            first = choices[0] if isinstance(choices[0], dict) else {}
            return _sample({**rest, **first}, root, depth + 1)
    if isinstance(schema.get("allOf"), list):
        return _sample(_merged(schema, root), root, depth + 1)
    return _by_type(schema, root, depth)


def _merged(schema: dict[str, Any], root: Any) -> dict[str, Any]:
    merged = {k: v for k, v in schema.items() if k != "allOf"}
    for found in schema["allOf"]:
        part = found
        if isinstance(part, dict) and isinstance(part.get("$ref"), str):
            part = _resolve(part["$ref"], root)
        if not isinstance(part, dict):
            continue
        properties = {**merged.get("properties", {}), **part.get("properties", {})}
        required = [*merged.get("required", []), *part.get("required", [])]
        merged = {**merged, **part}
        if properties:
            merged["properties"] = properties
        if required:
            merged["required"] = required
    return merged


def _by_type(schema: dict[str, Any], root: Any, depth: int) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind is None:
        kind = "object" if "properties" in schema else "string"
    match kind:
        case "object":
            properties = schema.get("properties")
            properties = properties if isinstance(properties, dict) else {}
            required = schema.get("required")
            names = required if isinstance(required, list) else []
            return {
                name: _sample(properties.get(name, {}), root, depth + 1)
                for name in names
                if isinstance(name, str)
            }
        case "array":
            size = min(_integer(schema.get("minItems")), 1_000)
            leading = schema.get("prefixItems")
            items = list(leading) if isinstance(leading, list) else []
            items += [schema.get("items", {})] * max(0, size - len(items))
            return [_sample(item, root, depth + 1) for item in items]
        case "integer" | "number":
            return _number(schema, whole=kind == "integer")
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return _string(schema)


def _integer(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def _number(schema: dict[str, Any], *, whole: bool) -> float:
    low, high = schema.get("minimum"), schema.get("maximum")
    over, under = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    step = schema.get("multipleOf")
    unit = step if isinstance(step, (int, float)) and step > 0 else 1
    value: float = 0
    if isinstance(low, (int, float)) and value < low:
        value = math.ceil(low / unit) * unit
    if isinstance(over, (int, float)) and value <= over:
        value = (math.floor(over / unit) + 1) * unit
    if isinstance(high, (int, float)) and value > high:
        value = math.floor(high / unit) * unit
    if isinstance(under, (int, float)) and value >= under:
        value = (math.ceil(under / unit) - 1) * unit
    # A range narrower than the unit: its middle, where fractions are allowed.
    if not whole and step is None:
        lower = max((b for b in (low, over) if isinstance(b, (int, float))), default=None)
        upper = min((b for b in (high, under) if isinstance(b, (int, float))), default=None)
        if lower is not None and upper is not None and not lower < value < upper:
            value = (lower + upper) / 2
    return int(value) if whole else value


def _string(schema: dict[str, Any]) -> str:
    text = _FORMATS.get(str(schema.get("format")), "text")
    shortest = min(_integer(schema.get("minLength")), 100_000)
    if len(text) < shortest:
        text += "x" * (shortest - len(text))
    longest = schema.get("maxLength")
    return text[:longest] if type(longest) is int and longest >= 0 else text
