"""Reading PostgreSQL's plans: where a table is read whole for a few of its rows, and which index would spare that."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

__all__ = ["Candidate", "candidates", "cost_of", "parameter_columns", "uses_index"]

# As PostgreSQL prints a name: in double quotes, doubled inside, where it is no plain one.
_NAME = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
# `(key_id = $1)`, `((o."model-name")::text = 'x'::text)`: a column, an operator, something. A function of a column is none, and
# neither is a cast but the one that an index on text does without.
_COMPARISON = re.compile(
    rf"(?<![\w$\".])(?P<open>\()?(?:{_NAME}\.)?(?P<column>{_NAME})(?(open)\)(?:::text)?)"
    r" (?P<operator>=|<=|>=|<|>) (?P<value>\$\d+|ANY|[^\s)]+)"
)
# Scans by an index that may still read many rows to throw them away.
_PARTLY = ("Index Scan", "Bitmap Heap Scan")
SELECTIVE = 0.2  # an index pays where fewer than about a fifth of the rows are wanted


class Candidate(msgspec.Struct, frozen=True):
    """An index that a plan lacks: equality columns first, then at most one of a range or an order."""

    schema: str
    table: str
    columns: tuple[str, ...]
    rows: float  # that the scan is expected to give

    @property
    def relation(self) -> tuple[str, str]:
        return self.schema, self.table


def _nodes(plan: dict[str, Any], above: dict[str, Any] | None = None) -> Iterator[tuple[Any, Any]]:
    yield plan, above
    for child in plan.get("Plans", ()):
        yield from _nodes(child, plan)


def candidates(plan: dict[str, Any], columns: dict[tuple[str, str], set[str]]) -> list[Candidate]:
    """Indexes for scans that throw rows away, in a plan (`EXPLAIN (VERBOSE, FORMAT JSON)`, its `Plan`).

    `columns`: the column names of each (schema, table). A scan without a usable comparison, and without an order that a LIMIT cuts
    short, has none: reading all is then right.
    """
    found = []
    for node, above in _nodes(plan):
        whole = node["Node Type"] == "Seq Scan"
        if not whole and not (node["Node Type"] in _PARTLY and "Filter" in node):
            continue
        schema, table = _relation(node)
        known = columns.get((schema, table), set())
        equal: list[str] = []
        ranged: list[str] = []
        condition = " ".join(
            node[part] for part in ("Filter", "Index Cond", "Recheck Cond") if part in node
        )
        if " OR " not in condition:  # one index serves a conjunction
            for match in _COMPARISON.finditer(condition):
                column = _unquoted(match["column"])
                if column in known and column not in equal + ranged:
                    (equal if match["operator"] == "=" else ranged).append(column)
        if not whole and not equal:
            continue  # its index is as good as any
        wanted = [*equal, *ranged[:1]] or _order(above, known)
        if wanted:
            found.append(Candidate(schema, table, tuple(wanted), node["Plan Rows"]))
    return found


def _relation(node: dict[str, Any]) -> tuple[str, str]:
    return node["Schema"], node["Relation Name"]


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _order(above: dict[str, Any] | None, known: set[str]) -> list[str]:
    """The order that is sorted for right above a scan."""
    if above is None or above["Node Type"] != "Sort":
        return []
    keys = [key.removesuffix(" DESC").rpartition(".")[2].strip('"') for key in above["Sort Key"]]
    return keys if all(key in known for key in keys) else []


def parameter_columns(plan: dict[str, Any]) -> dict[int, tuple[tuple[str, str], str]]:
    """Which ((schema, table), column) each parameter is compared with, as far as the plan says."""
    found: dict[int, tuple[tuple[str, str], str]] = {}
    for node, _ in _nodes(plan):
        for part in ("Filter", "Index Cond", "Recheck Cond"):
            for match in _COMPARISON.finditer(node.get(part, "")):
                if match["value"].startswith("$") and "Relation Name" in node:
                    found[int(match["value"][1:])] = (_relation(node), _unquoted(match["column"]))
    return found


def cost_of(plan: dict[str, Any]) -> float:
    """The planner's estimate of the whole, in its own units."""
    return float(plan["Total Cost"])


def uses_index(plan: dict[str, Any], name: str) -> bool:
    """Whether some node of the plan reads that index."""
    return any(name in str(node.get("Index Name", "")) for node, _ in _nodes(plan))
