from __future__ import annotations

import math
import re
import time
import tracemalloc
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from resprout.tasks.select import duplicates
from resprout.tasks.select.budget import (
    answer_efficiency,
    capability_degradation,
    floor_budget,
    full_budget,
    instruction_efficiency,
    ranked,
)
from resprout.tasks.select.concept_graph import (
    ConsistencyGraph,
    GraphOfFewConcepts,
    GraphOfManyConcepts,
    Outcome,
    choose_consistent,
    literal_concepts,
    phrases,
    readmit,
    top_concepts,
)
from resprout.tasks.select.duplicates import Questions, lexical_vectors, near_equal
from resprout.tasks.select.min_hash import SimilarSets, hashes
from resprout.tasks.select.pool import fill

GRAPHS = (GraphOfFewConcepts, GraphOfManyConcepts)


def consistent(clusters: Any, grants: Any, costs: Any, concepts: Any, order: Any) -> tuple[Outcome, Any]:
    graph = GraphOfFewConcepts()
    return choose_consistent(graph, clusters, grants, costs, concepts, order), graph


def conflicting(rows: list[dict[str, str]], vectors: Any, cosine: float, nll: np.ndarray) -> dict[int, int]:
    questions = Questions(rows, vectors, cosine)
    return questions.settled(nll, questions.contested(range(len(rows))))


def row(instruction: str, output: str, given: str = "") -> dict[str, str]:
    return {"instruction": instruction, "input": given, "output": output}


def test_cds_is_the_mean_of_each_cluster() -> None:
    """Cluster 0: (0.1 + 0.3) / 2, cluster 1: 0.6."""
    cds = capability_degradation(np.array([0.1, 0.6, 0.3]), np.array([0, 1, 0]))
    assert cds == pytest.approx([0.2, 0.6])


@pytest.mark.parametrize(
    ("budget", "cds", "capacities", "floored", "full"),
    [
        # 10 * (1, 2, 4) / 7 = 1.43, 2.86, 5.71: floors 1, 2, 5; the rest of 2 goes to .86 and .71.
        (10, [1, 2, 4], [99, 99, 99], [1, 2, 5], [1, 3, 6]),
        # The third is capped at 3; 7 * (1, 2) / 3 = 2.33, 4.67: floors 2 and 4, the rest to the second.
        (10, [1, 2, 4], [99, 99, 3], [1, 2, 3], [2, 5, 3]),
        # Capping the third overfills the second: 3 and 4 capped, 3 left for the first.
        (10, [1, 2, 4], [99, 4, 3], [1, 2, 3], [3, 4, 3]),
        # The pool is smaller than the budget.
        (10, [1, 2, 4], [1, 1, 1], [1, 1, 1], [1, 1, 1]),
        # Nothing was hurt: equal shares.
        (9, [0, 0, 0], [99, 99, 99], [3, 3, 3], [3, 3, 3]),
        # The hurt cluster is full, the rest goes to the unhurt ones in equal parts.
        (9, [1, 0, 0], [3, 99, 99], [3, 0, 0], [3, 3, 3]),
    ],
)
def test_budget_by_hand(
    budget: int, cds: list[float], capacities: list[int], floored: list[int], full: list[int]
) -> None:
    assert floor_budget(budget, cds, capacities) == floored
    assert full_budget(budget, cds, capacities) == full


def test_budget_is_always_filled_and_never_exceeded() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = int(rng.integers(1, 12))
        cds, capacities = rng.random(size) * (rng.random(size) < 0.8), rng.integers(0, 900, size)
        budget = int(rng.integers(1, 3000))
        granted = full_budget(budget, cds.tolist(), capacities.tolist())
        assert sum(granted) == min(budget, int(capacities.sum()))
        assert all(got <= held for got, held in zip(granted, capacities, strict=True))
        assert sum(floor_budget(budget, cds.tolist(), capacities.tolist())) <= budget


def test_ies_by_hand() -> None:
    """0.4 / log(10^2) = 0.4 / 4.605 = 0.0869."""
    assert instruction_efficiency(np.array([0.4]), np.array([10])) == pytest.approx([0.4 / math.log(100)])


def test_efficiency_of_an_answer_by_hand() -> None:
    """Of 10 tokens 4 are the answer, each 0.4 nats off: 1.6 nats for the training on 10 tokens."""
    found = answer_efficiency(np.array([0.4]), np.array([4]), np.array([10]))
    assert found == pytest.approx([0.16])


def test_rank_highest_first_ties_by_id() -> None:
    efficiency, labels = np.array([0.1, 0.5, 0.5, 0.9]), np.array([0, 0, 0, 1])
    assert ranked(efficiency, labels, ["a", "c", "b", "d"]) == [[2, 1, 0], [3]]


def test_fill_passes_over_what_does_not_fit() -> None:
    """Budget 10: 6 fits, 5 does not, 3 fits, 2 does not, 1 fits."""
    assert fill([0, 1, 2, 3, 4], [6, 5, 3, 2, 1], 10) == [0, 2, 4]


def test_rake_by_hand() -> None:
    """'deep red wine', 'red sea', 'sea' from 'the deep red wine, the red sea. A sea': degree / frequency is
    deep 3/1, red (3 + 2)/2, wine 3/1, sea (2 + 1)/2; the phrases score 8.5, 4 and 1.5.
    """
    assert phrases("The deep red wine, the red sea. A sea") == ["deep red wine", "red sea", "sea"]


def test_rake_borders() -> None:
    """Lines, punctuation and stop words part phrases; apostrophes and hyphens do not."""
    found = phrases("salt\npepper (well-kept) sauce and oven's")
    assert set(found) == {"salt", "pepper", "well-kept", "sauce", "oven's"}
    assert phrases("the of and") == []
    assert phrases("") == []


def test_concepts_cover_all_columns_and_top_ones_occur_twice() -> None:
    rows = [row("red wine", "salt", "blue sea"), row("red wine", "pepper"), row("salt", "blue sea")]
    assert set(literal_concepts(rows)[0]) == {"red wine", "blue sea", "salt"}
    assert top_concepts(lambda: rows) == [
        ["blue sea", "red wine", "salt"],
        ["red wine"],
        ["blue sea", "salt"],
    ]


def test_at_most_three_top_concepts() -> None:
    rows = [row("a1, b1, c1, d1, e1", "x")] * 2
    assert len(literal_concepts(rows)[0]) == 6
    assert top_concepts(lambda: rows)[0] == ["a1", "b1", "c1"]
    assert top_concepts(lambda: rows[:1]) == top_concepts(lambda: [row("", "")]) == [[]]


def test_top_concepts_hold_no_text() -> None:
    """100 rows of 4 kB: the phrases of all would take six times their text."""
    texts = [" and ".join(made_up(300 * number + word) for word in range(300)) for number in range(100)]
    rows = [row(text, "x") for text in texts]
    tracemalloc.start()
    top_concepts(lambda: rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < sum(map(len, texts)) * 2


@pytest.mark.parametrize("kind", GRAPHS)
def test_graph_by_hand(kind: Callable[[], ConsistencyGraph]) -> None:
    """After {a, b} and {c}: a-b is an edge; a-c are both known without one; a-x has an unknown end."""
    graph = kind()
    assert graph.conflicts(["a", "b"]) == 0
    graph.add(["a", "b"])
    graph.add(["c"])
    assert graph.conflicts(["b", "a"]) == 0
    assert graph.conflicts(["a", "x"]) == 0
    assert graph.conflicts(["a", "c"]) == 1
    assert graph.conflicts(["a", "b", "c"]) == 2
    graph.add(["a", "b", "c"])
    assert graph.conflicts(["a", "b", "c"]) == 0


# Row 0 {a, b} is accepted, row 1 {c} too; 2 {a, b, c} contradicts two pairs, 3 {a, c} one, 4 {d} none.
CONCEPTS = [["a", "b"], ["c"], ["a", "b", "c"], ["a", "c"], ["d"]]
TOKENS = np.array([10, 10, 10, 10, 10])


def test_first_pass_by_hand() -> None:
    outcome, _ = consistent([[0, 1, 2, 3, 4]], [50], TOKENS, CONCEPTS, [0])
    assert sorted(outcome.reasons) == [0, 1, 4]
    assert (outcome.considered, outcome.rejected, outcome.filled) == ([5], [2], [30])
    assert outcome.refusals == {
        2: "2 pairs of its concepts contradict accepted rows",
        3: "1 pairs of its concepts contradict accepted rows",
    }


def test_second_pass_takes_the_least_conflicting() -> None:
    """40 tokens hold four rows: row 3 with one conflict comes before row 2 with two, though below."""
    outcome, graph = consistent([[0, 1, 2, 3, 4]], [40], TOKENS, CONCEPTS, [0])
    readmit(outcome, graph, [[0, 1, 2, 3, 4]], [40], TOKENS, CONCEPTS, [0], 40)
    assert sorted(outcome.reasons) == [0, 1, 3, 4]
    assert outcome.reasons[3].startswith("re-admitted")
    assert (outcome.readmitted, outcome.filled) == ([1], [40])


def test_what_clusters_leave_is_topped_up() -> None:
    """Grants of 15 and 25 leave 5 and 5 of budget 40: one more row of 10 fits."""
    clusters = [[0, 1], [2, 3, 4]]
    alone = [["a"], ["b"], ["c"], ["d"], ["e"]]
    outcome, graph = consistent(clusters, [15, 25], TOKENS, alone, [1, 0])
    assert sorted(outcome.reasons) == [0, 2, 3]
    assert outcome.refusals[1] == "does not fit what is left of its cluster's budget"
    readmit(outcome, graph, clusters, [15, 25], TOKENS, alone, [1, 0], 40)
    assert len(outcome.reasons) == 4
    assert sum(outcome.filled) == 40


def test_the_cluster_served_first_sets_the_concepts() -> None:
    """Row 0 {a, b} and row 1 {a}, {b} apart cannot both stand first."""
    clusters, concepts = [[0], [1, 2]], [["a", "b"], ["a"], ["b"]]
    first, _ = consistent(clusters, [10, 20], TOKENS[:3], concepts, [0, 1])
    second, _ = consistent(clusters, [10, 20], TOKENS[:3], concepts, [1, 0])
    assert sorted(first.reasons) == [0, 1, 2]
    assert sorted(second.reasons) == [1, 2]


def test_near_equal_rows() -> None:
    words = " ".join(f"word{number}" for number in range(60))
    rows = [
        row(words, "yes"),
        row("something else", "no"),
        row(words + "!", "yes"),
        row(words, words.upper().replace("WORD", "other")),
    ]
    texts = [f"{one['instruction']} {one['output']}" for one in rows]
    assert list(near_equal(texts)) == [None, None, 0, None]
    sums = [f"Calculate {a} - {b} = {a - b}" for a in range(20) for b in range(20)]
    assert set(near_equal(sums)) == {None}


def test_near_equal_finds_what_a_comparison_of_all_pairs_does() -> None:
    """Texts of which some words were changed, against the definition; what went stands for none after it."""
    rng = np.random.default_rng(2)
    texts = list[str]()
    for _ in range(60):
        words = rng.integers(0, 400, 60)
        for changed in (0, 1, 2, 3):
            other = words.copy()
            other[rng.choice(60, changed, replace=False)] += 1000
            texts.append(" ".join(map(str, other)))
    runs = [{tuple(text.split()[at : at + 3]) for at in range(58)} for text in texts]
    expected, kept = list[int | None](), list[int]()
    for place, own in enumerate(runs):
        same = [one for one in kept if len(own & runs[one]) / len(own | runs[one]) >= 0.9]
        expected.append(same[0] if same else None)
        kept += [] if same else [place]
    found = list(near_equal(texts))
    assert found == expected
    assert 30 < sum(one is not None for one in found) < 180


def made_up(number: int) -> str:
    return "".join(np.random.default_rng(number).choice([*"aeioubdfgklmnprst"], 8))


def counted(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> tuple[int, Any]:
    """How many earlier sets were found for all sets together while this was called, and what it gave."""
    found, real = list[int](), SimilarSets.before

    def before(self: SimilarSets, number: int) -> list[int]:
        earlier = real(self, number)
        found.append(len(earlier))
        return earlier

    with monkeypatch.context() as patched:
        patched.setattr(SimilarSets, "before", before)
        given = call()
    return sum(found), given


def test_rows_of_one_form_do_not_all_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 words of a form and five of its own make a Jaccard index of 0.85: twice the rows meet twice as many.

    The last 50 are written anew from others: each of them is found.
    """
    form = " ".join(f"rule{number}" for number in range(60))

    def met(count: int) -> int:
        texts = [f"{form} {' '.join(made_up(5 * row + word) for word in range(5))}" for row in range(count)]
        again = [f"Rule: {text}" for text in texts[-50:]]
        met, found = counted(monkeypatch, lambda: list(near_equal([*texts, *again])))
        assert found == [None] * count + list(range(count - 50, count))
        return met

    assert list(near_equal([])) == []
    assert met(1200) / met(600) < 2.5


@pytest.mark.parametrize("sparse", [True, False])
def test_questions_of_one_form_do_not_all_meet(sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`What is the capital of ...?`, words of a Jaccard index of 0.69, with 50 that two rows answer."""
    monkeypatch.setattr(duplicates, "ALL_PAIRS", 100)
    monkeypatch.setattr(duplicates, "_PAIRS", 1000)

    def met(count: int) -> int:
        rows = [row(f"What is the capital of {made_up(number)}?", "one") for number in range(count)]
        rows += [row(f"{one['instruction']} !", "another") for one in rows[-50:]]
        vectors = lexical_vectors([one["instruction"] for one in rows])
        given = vectors if sparse else vectors.toarray()
        met, questions = counted(monkeypatch, lambda: Questions(rows, given, 0.95))
        assert questions.contested(range(len(rows))) == list(range(count - 50, count + 50))
        assert questions.contested([0, count]) == [count - 50, count]
        return met

    assert met(2000) / met(1000) < 2.5


def test_a_set_meets_the_first_of_many_equal_ones() -> None:
    """Of 40 equal sets each meets the first 16 at the most; a set of its own none."""
    index = SimilarSets([hashes(["same"])] * 40 + [hashes(["other"])])
    assert [index.before(number) for number in (0, 3, 39, 40)] == [[], [0, 1, 2], list(range(16)), []]


def test_conflicting_answers_leave_the_likeliest() -> None:
    """Rows 0, 1 and 2 ask the same; 1 is likeliest, 2 has 1's answer and stays, 0 goes. Other numbers,
    another input or other words make another question.
    """
    rows = [
        row("What is the capital of France?", "Lyon"),
        row("what is the capital of france", "Paris"),
        row("What is the capital of France ?", "paris"),
        row("What is 2 plus 3?", "5"),
        row("What is 2 plus 4?", "6"),
        row("Translate.", "chat", "cat"),
        row("Translate.", "chien", "dog"),
    ]
    nll = np.array([2.0, 1.0, 3.0, 1.0, 1.0, 1.0, 1.0])
    vectors = lexical_vectors([found["instruction"] for found in rows])
    assert conflicting(rows, vectors, 0.95, nll) == {0: 1}
    dense = vectors.toarray()
    assert conflicting(rows, dense, 0.95, nll) == {0: 1}
    assert conflicting(rows, dense, 0.95, np.array([0.5, 1.0, 3.0, 1, 1, 1, 1])) == {1: 0, 2: 0}


def rivals_one_by_one(
    rows: list[dict[str, str]], vectors: np.ndarray, cosine: float, nll: np.ndarray
) -> dict[int, int]:
    """The definition, pair by pair: the likeliest first, a row goes for the likeliest rival that stays."""

    def said(row: dict[str, str]) -> str:
        return " ".join(row["output"].lower().split())

    def asked(row: dict[str, str]) -> tuple[str, list[str]]:
        numbers = re.findall(r"\d+(?:[.,]\d+)*", row["instruction"])
        return " ".join(row["input"].lower().split()), sorted(numbers)

    stays, gone = list[int](), dict[int, int]()
    for index in sorted(range(len(rows)), key=lambda row: (nll[row], row)):
        for other in stays:
            near = vectors[index] @ vectors[other] >= cosine and asked(rows[index]) == asked(rows[other])
            if near and said(rows[index]) != said(rows[other]):
                gone[index] = other
                break
        else:
            stays.append(index)
    return gone


@pytest.mark.parametrize(
    ("block", "all_pairs", "cosines"),
    # By MinHash, as larger groups are, pairs are found that are as near as the setting is for.
    [(7, 4000, (0.6, 0.95)), (1024, 4000, (0.6, 0.95)), (7, 1, (0.95,)), (1024, 1, (0.95,))],
)
def test_conflicting_is_its_definition(
    block: int, all_pairs: int, cosines: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    monkeypatch.setattr(duplicates, "_PAIRS", block)
    monkeypatch.setattr(duplicates, "ALL_PAIRS", all_pairs)
    rng = np.random.default_rng(3)
    dropped = 0
    for _ in range(20):
        rows = [
            row(
                f"{' '.join(rng.choice(['add', 'take', 'now'], 3))} {rng.integers(2)} and {rng.integers(2)}",
                rng.choice(["yes", "Yes ", "no", "it depends"]),
                rng.choice(["", "a  b", "A b", "c"]),
            )
            for _ in range(60)
        ]
        nll = rng.integers(0, 4, 60).astype(float)
        vectors = lexical_vectors([found["instruction"] for found in rows])
        for cosine in cosines:
            expected = rivals_one_by_one(rows, vectors.toarray(), cosine, nll)
            assert conflicting(rows, vectors, cosine, nll) == expected
            assert conflicting(rows, vectors.toarray(), cosine, nll) == expected
            dropped += len(expected)
    assert dropped > 50


def test_questions_of_symbols_alone_are_like_none() -> None:
    """No word stands in any of them: two answers to one are rivals, two such questions are not."""
    rows = [row("🙂", "yes"), row("-", "no"), row("🙂", "no")]
    vectors = lexical_vectors(one["instruction"] for one in rows)
    assert vectors.shape[0] == 3
    assert conflicting(rows, vectors, 0.95, np.array([1.0, 2.0, 3.0])) == {2: 0}


def test_a_question_with_more_than_four_answers_is_open() -> None:
    """Of four answers to a question the likeliest stays, of five all do; of another text each has its own."""
    four = [row("What is it?", f"answer {number}") for number in range(4)]
    five = [row("Write a story.", f"story {number}") for number in range(5)]
    other = [row("Sum it up.", f"answer {number}", f"text {number}") for number in range(6)]
    rows = [*four, *five, *other, row("What is it?", "answer 1")]
    questions = Questions(rows, lexical_vectors([one["instruction"] for one in rows]), 0.95)
    assert questions.contested(range(16)) == questions.contested([2]) == [0, 1, 2, 3, 15]
    assert questions.contested(range(4, 15)) == []
    assert questions.open_rows == 5
    assert questions.settled(np.arange(16.0), [0, 1, 2, 3, 15]) == {1: 0, 2: 0, 3: 0, 15: 0}
    assert questions.settled(np.arange(16.0), [1, 15]) == {}


def test_answers_to_near_questions_count_together() -> None:
    """Three answers to each of two questions that ask the same are six: both are open."""
    asked = ["What is the capital of France?", "what is the capital of france"]
    rows = [row(asked[number % 2], f"answer {number}") for number in range(6)]
    vectors = lexical_vectors([one["instruction"] for one in rows])
    assert Questions(rows, vectors, 0.95).open_rows == 6
    assert Questions(rows, vectors, 0.95).contested(range(6)) == []
    few = Questions(rows[:4], vectors[:4], 0.95)
    assert few.contested(range(4)) == few.contested([0]) == [0, 1, 2, 3]


def test_a_pool_of_one_instruction_takes_a_time_that_grows_with_its_rows() -> None:
    """Eight times the rows: by the rows 8 times as long, by their square 64."""

    def seconds(count: int) -> float:
        rows = [row("Sum up the text.", f"answer {number}") for number in range(count)]
        vectors = lexical_vectors(["Sum up the text."])
        took = list[float]()
        for _ in range(3):
            start = time.perf_counter()
            questions = Questions(rows, vectors, 0.95)
            assert questions.contested(range(count)) == []
            took.append(time.perf_counter() - start)
            assert questions.open_rows == count
        return min(took)

    assert seconds(32_000) / seconds(4_000) < 24


@pytest.mark.parametrize("kind", GRAPHS)
def test_graph_is_its_set_of_edges(kind: Callable[[], ConsistencyGraph]) -> None:
    """Against vertices and edges kept as sets, rows accepted whether they conflict or not."""
    rng = np.random.default_rng(5)
    for _ in range(30):
        graph, vertices, edges = kind(), set[str](), set[tuple[str, str]]()
        for _ in range(40):
            concepts = [f"c{number}" for number in rng.integers(0, 25, rng.integers(0, 8))]
            pairs = list(combinations(sorted(set(concepts)), 2))
            known = [pair for pair in pairs if vertices.issuperset(pair)]
            assert graph.conflicts(concepts) == sum(pair not in edges for pair in known)
            if rng.random() < 0.7:
                graph.add(concepts)
                vertices.update(concepts)
                edges.update(pairs)


def test_long_rows_do_not_fill_the_memory_with_pairs() -> None:
    """200 rows of 1,440 phrases, each half its own and half its neighbour's, hold 200 million pairs."""
    concepts = [[f"phrase {720 * index + number}" for number in range(1440)] for index in range(200)]
    tracemalloc.start()
    try:
        graph = GraphOfManyConcepts()
        outcome = choose_consistent(graph, [range(200)], [200], np.ones(200, dtype=np.int64), concepts, [0])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(outcome.reasons) == 200
    assert graph.conflicts([concepts[0][0], concepts[0][1439], concepts[2][1439]]) == 2
    assert peak < 50e6


def test_the_memory_of_many_rows_grows_with_them() -> None:
    """Four times the rows of 15 concepts, 14 of which no other row has, take four times the memory."""

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            graph = GraphOfManyConcepts()
            for number in range(count):
                graph.add(["all", *(f"{number} {own}" for own in range(14))])
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(8000) < 5 * peak(2000)
