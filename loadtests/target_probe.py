"""Whether a target speaks the Messages API and takes our key: asked once, before a run whose every request would fail."""

from __future__ import annotations

import http.client
import json
from typing import Final

from loadtests.target import API_VERSION, PATH, BadTarget, parse_target

__all__ = ["probe"]

# An invalid body is answered without any work of a model.
TIMEOUT_S: Final = 10.0
_MAX_BYTES: Final = 64 * 1024


def probe(url: str, api_key: str) -> None:
    """Post an empty object to `url`: the API checks the key first (401), then the body (400), so that it costs nothing.

    Raises BadTarget where the answer means that every request would fail: the key is refused, the path is not there, or
    what listens speaks no HTTP. Whatever else it says (a limit, an overload, an error of its own) is the run's to measure.
    """
    status, kind = _ask(url, api_key)
    said = f"target {url}: {status}{' ' + kind if kind else ''}"
    if status in (401, 403):
        advice = (
            "it refuses the key in ANTHROPIC_API_KEY; set another"
            if api_key
            else "set ANTHROPIC_API_KEY"
        )
        raise BadTarget(f"{said}: {advice}")
    if status in (404, 405) or 300 <= status < 400:
        raise BadTarget(f"{said}: is it a Messages API? Requests go to {url.rstrip('/')}{PATH}")


def _ask(url: str, api_key: str) -> tuple[int, str]:
    """The status, and the type of the error, "" where it names none."""
    host, port, prefix = parse_target(url)
    headers = {
        "content-type": "application/json",
        "anthropic-version": API_VERSION,
        "user-agent": "twinload",
        **({"x-api-key": api_key} if api_key else {}),
    }
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.connect()
    except OSError as error:
        wrong = error.strerror or error
        raise BadTarget(f"target {url}: {wrong}; is it running, and is the port right?") from None
    try:
        connection.request("POST", prefix + PATH, b"{}", headers)
        answer = connection.getresponse()
        return answer.status, _error_type(answer.read(_MAX_BYTES))
    except TimeoutError:
        raise BadTarget(
            f"target {url}: no answer to an empty request within {TIMEOUT_S:g} s; is it a Messages API?"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise BadTarget(
            f"target {url}: no answer in HTTP ({type(error).__name__}); is it a Messages API?"
        ) from None
    except ValueError:
        # Of the header: the key itself is not to be shown.
        raise BadTarget(
            "ANTHROPIC_API_KEY: not a key: it has characters that no header takes"
        ) from None
    finally:
        connection.close()


def _error_type(body: bytes) -> str:
    try:
        kind = json.loads(body)["error"]["type"]
    except (ValueError, KeyError, TypeError):
        return ""
    return kind[:60] if isinstance(kind, str) and kind.isprintable() else ""
