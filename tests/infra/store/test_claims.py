"""Claims: one of many gets a key, and gets it again when it asks again."""

from __future__ import annotations

import threading
from typing import Any

from resprout.infra.store.claims import claim


def test_one_of_many_gets_a_claim_and_keeps_it(store: Any) -> None:
    said: dict[str, str] = {}

    def ask(owner: str) -> None:
        said[owner] = claim(store.driver, "rule chat model-7", owner)

    threads = [threading.Thread(target=ask, args=(f"run-{index}",)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 8
    (winner,) = set(said.values())
    assert winner in said
    assert claim(store.driver, "rule chat model-7", winner) == winner
    assert claim(store.driver, "rule chat model-8", "run-9") == "run-9"
