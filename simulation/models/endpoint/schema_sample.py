"""A small value that satisfies a JSON schema, always the same one: the input of a mock's tool calls.

Covers what tool definitions use: type, properties, required, items, enum, const, default, anyOf/oneOf/allOf, $ref, length
and number bounds, and the common string formats. Optional properties are left out. `pattern` is not solved.
"""

from __future__ import annotations

import math
from typing import Any, Final

__all__ = ["sample_of"]

_MAX_DEPTH: Final = 64
_MAX_PARTS: Final = 10_000

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
    """A value that satisfies `schema`; incomplete for one that demands itself, or more than 10,000 parts."""
    return _Sampler(schema).sample(schema, 0)


class _Sampler:
    """One pass over one schema; its size is bounded, because a schema may refer to itself twice."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._left = _MAX_PARTS

    def sample(self, schema: Any, depth: int) -> Any:
        self._left -= 1
        if not isinstance(schema, dict) or depth > _MAX_DEPTH or self._left < 0:
            return None
        if isinstance(schema.get("$ref"), str):
            return self.sample(self._resolve(schema["$ref"]), depth + 1)
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return schema["enum"][0]
        for name in ("anyOf", "oneOf"):
            choices = schema.get(name)
            if isinstance(choices, list) and choices:
                rest = {k: v for k, v in schema.items() if k != name}
                first = choices[0] if isinstance(choices[0], dict) else {}
                return self.sample({**rest, **first}, depth + 1)
        if isinstance(schema.get("allOf"), list):
            return self.sample(self._merged(schema), depth + 1)
        return self._by_type(schema, depth)

    def _resolve(self, reference: str) -> Any:
        """The subschema at a local pointer (`#/$defs/Name`); anything goes where it leads nowhere."""
        target = self._root
        for part in reference.removeprefix("#").strip("/").split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            if not name:
                continue
            if not isinstance(target, dict) or name not in target:
                return {}
            target = target[name]
        return target

    def _merged(self, schema: dict[str, Any]) -> dict[str, Any]:
        """All parts of an `allOf` in one."""
        merged = {k: v for k, v in schema.items() if k != "allOf"}
        for found in schema["allOf"][:_MAX_PARTS]:
            part = found
            if isinstance(part, dict) and isinstance(part.get("$ref"), str):
                part = self._resolve(part["$ref"])
            if not isinstance(part, dict):
                continue
            properties = {**_dict(merged.get("properties")), **_dict(part.get("properties"))}
            required = [*_list(merged.get("required")), *_list(part.get("required"))]
            merged = {**merged, **part, "properties": properties, "required": required}
        return merged

    def _by_type(self, schema: dict[str, Any], depth: int) -> Any:
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = kind[0] if kind else None
        if kind is None:
            kind = "object" if "properties" in schema else "string"
        match kind:
            case "object":
                properties = _dict(schema.get("properties"))
                names = [name for name in _list(schema.get("required")) if isinstance(name, str)]
                return {name: self.sample(properties.get(name, {}), depth + 1) for name in names}
            case "array":
                items = _list(schema.get("prefixItems"))[:_MAX_PARTS]
                size = min(_integer(schema.get("minItems")), max(0, self._left))
                items = items + [schema.get("items", {})] * (size - len(items))
                return [self.sample(item, depth + 1) for item in items]
            case "integer" | "number":
                return _number(schema, whole=kind == "integer")
            case "boolean":
                return True
            case "null":
                return None
            case _:
                return _string(schema)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _integer(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def _bound(schema: dict[str, Any], name: str) -> float | None:
    """A bound as written; beyond 2^53 it is none, because arithmetic on it would not be exact."""
    value = schema.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) < 2**53 else None


def _number(schema: dict[str, Any], *, whole: bool) -> float:
    low, high = _bound(schema, "minimum"), _bound(schema, "maximum")
    over, under = _bound(schema, "exclusiveMinimum"), _bound(schema, "exclusiveMaximum")
    step = _bound(schema, "multipleOf")
    unit = step if step is not None and step > 1e-6 else 1
    value: float = 0
    if low is not None and value < low:
        value = math.ceil(low / unit) * unit
    if over is not None and value <= over:
        value = (math.floor(over / unit) + 1) * unit
    if high is not None and value > high:
        value = math.floor(high / unit) * unit
    if under is not None and value >= under:
        value = (math.ceil(under / unit) - 1) * unit
    # A range narrower than the unit: its middle, where fractions are allowed.
    if not whole and step is None:
        lower = max((b for b in (low, over) if b is not None), default=None)
        upper = min((b for b in (high, under) if b is not None), default=None)
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
