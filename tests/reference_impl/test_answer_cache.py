"""The gateway's cache from its description: what it needs, and how it says what is missing."""

from __future__ import annotations

import pytest

from reference_impl.answer_cache import NO_BACKENDS, build_cache
from reference_impl.caches.connect import URL_VARIABLE, BadStoreUrl, store_of
from reference_impl.deployment import CacheSpec, SemanticCacheSpec


def refusal(spec: CacheSpec) -> str:
    with pytest.raises(ValueError) as refused:
        build_cache(spec, NO_BACKENDS, seed=0, on_event=lambda event: None)
    return str(refused.value)


def test_what_the_description_wants_and_nobody_handed_in_is_named() -> None:
    assert refusal(CacheSpec(shared="redis")).startswith("cache.shared is redis")
    assert refusal(CacheSpec(semantic=SemanticCacheSpec(enabled=True))).startswith("cache.semantic")


def test_a_cache_that_is_off_needs_nothing() -> None:
    spec = CacheSpec(enabled=False, shared="redis", semantic=SemanticCacheSpec(enabled=True))
    built = build_cache(spec, NO_BACKENDS, seed=0, on_event=lambda event: None)
    assert built == (None, None)
    assert store_of(spec, "") is None
    assert store_of(CacheSpec(), "redis://127.0.0.1:1") is None


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:6379", "http://:secret@127.0.0.1", "redis://:secret@", "redis://:secret@h:x/0"],
)
def test_a_bad_url_is_told_in_one_line_without_its_password(url: str) -> None:
    with pytest.raises(BadStoreUrl, match=f"{URL_VARIABLE}.*redis://") as refused:
        store_of(CacheSpec(shared="redis"), url)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
