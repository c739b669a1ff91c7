"""The gate on examples of its own: none of them is among the labelled pairs."""

from __future__ import annotations

import pytest

from reference_impl.caches.semantic.gate import difference


@pytest.mark.parametrize(
    ("first", "second", "objection"),
    [
        ("Roast a duck for 40 minutes.", "Roast a duck for 45 minutes.", "numbers"),
        ("Name four rivers in Spain.", "Name six rivers in Spain.", "numbers"),
        ("Is 1,200 prime?", "Is 12,00 prime?", "numbers"),
        ("Which plants need sun?", "Which plants don't need sun?", "negation"),
        ("Cake with sugar", "Cake without sugar", "negation"),
        ("Translate 'cat' to Dutch.", "Translate 'dog' to Dutch.", "quotation"),
        ("How do I raise the volume?", "How do I lower the volume?", "antonyms"),
        ("Is this mushroom edible?", "Is this mushroom inedible?", "antonyms"),
        ("Is the licence valid?", "Is the licence invalid?", "antonyms"),
        ("Where did Mozart die?", "When did Mozart die?", "question word"),
        ("What are tides?", "What causes tides?", "question word"),
        ("Who leads Norway?", "Who leads Sweden?", "names"),
        ("Tell me about Chopin.", "Tell me about Liszt.", "names"),
        ("Trains from Oslo to Bergen", "Trains from Bergen to Oslo", "order"),
        ("Is tea healthier than coffee?", "Is coffee healthier than tea?", "order"),
        ("Divide 12 by 3.", "Divide 3 by 12.", "order"),
        ("Can a dog bite a postman?", "Can a postman bite a dog?", "order"),
        ("How do I water a cactus?", "How do I repot a cactus?", "one word"),
        ("Show my orders.", "Show my cancelled orders.", "qualifier"),
    ],
)
def test_it_names_what_differs_whichever_comes_first(
    first: str, second: str, objection: str
) -> None:
    assert difference(first, second) == objection
    assert difference(second, first) == objection


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("How do I bake a pie?", "how do i bake a pie"),
        ("How do I bake a pie?", "Could you please tell me how to bake a pie?"),
        ("What's the capital of Peru?", "Which city is the capital of Peru?"),
        ("How do I sort a list in Ruby?", "In Ruby, how can I sort a list?"),
        ("Name 3 rivers.", "Name three rivers."),
        ("How do I change my address?", "How can I update my address?"),
        ("Why is snow white?", "What is the reason snow is white?"),
        ("I can\u2019t log in, what now?", "I can't log in. What now?"),
        ("", ""),
        ("東京の天気", "東京の天気"),
    ],
)
def test_it_lets_pass_what_asks_the_same(first: str, second: str) -> None:
    assert difference(first, second) == ""
    assert difference(second, first) == ""


def test_it_reads_a_long_prompt_in_reasonable_time_and_without_error() -> None:
    prompt = "Summarise: " + "the (quick] brown 'fox\" 3.1.4 [^*] " * 2000
    assert difference(prompt, prompt + "!") == ""
