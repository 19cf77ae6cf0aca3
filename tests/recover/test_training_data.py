from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import PartOfRecovery, RecoverConfig
from resprout.tasks.recover.training_data import Source, in_steps, mixed, prepare

Write = Callable[..., Path]
LENGTHS = np.random.default_rng(3).integers(10, 256, size=500).tolist()


@pytest.fixture
def inputs(models_folder: Path, write_selection: Write, tmp_path: Path) -> dict[str, Path]:
    """Rows, and text of two sources: 400 documents of 50 bytes and 100 of 700."""
    folder = tmp_path / "text"
    folder.mkdir()
    rows = [{"text": f"{n:050d}", "source": "short"} for n in range(400)]
    rows += [{"text": f"{n:0700d}", "source": "long"} for n in range(100)]
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "pruned": models_folder / "pruned", "selection": write_selection(count=40), "recovery_text": folder,
    }  # fmt: skip


def config(**changes: Any) -> RecoverConfig:
    return RecoverConfig(**{"batch_tokens": 600, "seq_len_tokens": 256, "held_out_ratio": 0.0, **changes})


def text(*weights: float | None) -> list[dict[str, Any]]:
    return [{"source": f"{n}.txt", "weight": weight} for n, weight in enumerate(weights)]


def tokens_by_source(data: Any) -> dict[str, int]:
    found = dict.fromkeys((group.name for group in data.rows.groups), 0)
    for one in (one for step in data.steps for one in step):
        found[data.rows.name(one).split()[0]] += int(data.rows.lengths[one])
    return found


def test_without_weights_an_epoch_takes_each_example_about_once(inputs: dict[str, Path]) -> None:
    data = prepare(config(text=text(None, None)), inputs, 17)
    assert [(group.name, group.end - group.begin) for group in data.rows.groups] == [
        ("rows", 40), ("short", 82), ("long", 275),
    ]  # fmt: skip
    found = tokens_by_source(data)
    # With a blank line between two, in windows of 256.
    assert found["short"] == pytest.approx(400 * 52, rel=0.05)
    assert found["long"] == pytest.approx(100 * 702, rel=0.05)


def test_weights_share_the_tokens(inputs: dict[str, Path]) -> None:
    data = prepare(config(text=text(1.0, 2.0), rows_weight=1.0, tokens=60_000), inputs, 17)
    found = tokens_by_source(data)
    whole = sum(found.values())
    assert whole == pytest.approx(60_000, rel=0.01)
    assert [round(found[name] / whole, 2) for name in ("rows", "short", "long")] == [0.25, 0.25, 0.5]
    # In each quarter of training too.
    quarter = tokens_by_source(
        prepare(config(text=text(1.0, 2.0), rows_weight=1.0, tokens=15_000), inputs, 17)
    )
    assert quarter["long"] / sum(quarter.values()) == pytest.approx(0.5, abs=0.03)


def test_a_weight_of_nothing_leaves_a_source_out(inputs: dict[str, Path]) -> None:
    data = prepare(config(text=text(0.0, 1.0), rows_weight=0.0), inputs, 17)
    found = tokens_by_source(data)
    assert found["rows"] == found["short"] == 0 < found["long"]


@pytest.mark.parametrize(
    ("weights", "rows_weight", "words"),
    [((1.0, None), None, "not others"), ((1.0, 1.0, 1.0), 1.0, "3 sources, of which 2")],
)
def test_weights_that_do_not_say_enough(
    weights: tuple[float | None, ...], rows_weight: float | None, words: str, inputs: dict[str, Path]
) -> None:
    with pytest.raises(BadInput, match=words):
        prepare(config(text=text(*weights), rows_weight=rows_weight), inputs, 17)


def test_text_alone_is_enough_and_nothing_is_not(inputs: dict[str, Path], write_selection: Write) -> None:
    data = prepare(config(text=text(None, None)), {k: v for k, v in inputs.items() if k != "selection"}, 17)
    assert tokens_by_source(data)["long"] > 0
    empty = write_selection(count=0, name="empty")
    with pytest.raises(BadInput, match="holds no rows"):
        prepare(config(), {"pruned": inputs["pruned"], "selection": empty}, 17)


def test_mixed_by_hand() -> None:
    """Shares 2/3 and 1/3 of examples of one token: every third is of the second."""
    lengths = np.ones(6, dtype=np.int64)
    sources = [Source(np.array([0, 1, 2, 3]), 2 / 3), Source(np.array([4, 5]), 1 / 3)]
    order = mixed(lengths, sources, 6, seed=1)
    assert sorted(order[:6].tolist()) == [0, 1, 2, 3, 4, 5]
    assert [one >= 4 for one in order[:6]] in ([False, True, False] * 2, [False, False, True] * 2)
    assert order[:6].tolist() != mixed(lengths, sources, 6, seed=2)[:6].tolist()


def test_in_steps_by_hand() -> None:
    """Middles at 2, 5.5, 8.5, 12.5 of steps of 5: an example goes where its middle lies."""
    order = np.array([3, 0, 2, 1])
    assert in_steps(order, np.array([3, 5, 3, 4]), 5) == [[3], [0, 2], [1]]


def drawn(lengths: list[int], batch_tokens: int, steps: int, seed: int) -> list[list[int]]:
    held = np.array(lengths)
    order = mixed(held, [Source(np.arange(len(held)), 1.0)], steps * batch_tokens, seed)
    return in_steps(order, held, batch_tokens)[:steps]


def test_passes_differ_and_seeds_decide() -> None:
    """65,644 tokens in steps of 2,000: a pass of 32 steps and a part of the next holds no row twice."""
    steps = drawn(LENGTHS, 2000, 66, seed=5)
    assert sum(LENGTHS) == 65_644
    first = [index for step in steps[:32] for index in step]
    assert len(first) == len(set(first)) > 470
    sizes = [sum(LENGTHS[index] for index in step) for step in steps]
    assert all(2000 - 256 <= size <= 2000 + 256 for size in sizes)
    assert steps[:33] == drawn(LENGTHS, 2000, 33, seed=5)
    assert steps[:33] != steps[33:]
    assert steps[:33] != drawn(LENGTHS, 2000, 33, seed=6)


def test_a_step_mixes_lengths() -> None:
    """Rows of 10 and of 200 tokens, half the tokens each: no step of ten is all of one kind."""
    lengths = [10] * 400 + [200] * 20
    steps = drawn(lengths, 800, 10, seed=1)
    assert all({lengths[index] for index in step} == {10, 200} for step in steps)


def test_what_is_held_out_is_not_trained_on(inputs: dict[str, Path]) -> None:
    data = prepare(config(text=text(None, None), held_out_ratio=0.1, epochs=3), inputs, 17)
    assert data.held_out
    size = int(data.rows.lengths[data.held_out].sum())
    assert size == pytest.approx(0.1 * int(data.rows.lengths.sum()), rel=0.3)
    assert not {one for step in data.steps for one in step} & set(data.held_out)
    assert prepare(config(held_out_ratio=0.001), inputs, 17).held_out == []


def test_parts_of_a_recovery_are_its_steps_one_after_another(inputs: dict[str, Path]) -> None:
    """Together they take each step once, in the same order, also where shares are not whole steps."""
    whole = config(batch_tokens=300, epochs=0.9)
    steps = prepare(whole, inputs, 17).steps
    parts = [
        prepare(PartOfRecovery(**whole.model_dump(), begin=begin, end=end), inputs, 17).steps
        for begin, end in itertools.pairwise((0.0, 0.25, 0.5, 0.75, 1.0))
    ]
    assert len(steps) % 4
    assert [step for part in parts for step in part] == steps
    tiny = PartOfRecovery(**whole.model_dump(), begin=1.0, end=1.0)
    assert prepare(tiny, inputs, 17).steps == steps[-1:]
