"""Which selection brings the model back best: rivals on one schedule, paired over seeds and held-out text.

Each arm is a way to select, recovered with the same training and judged on the same text. Two arms differ by
chance twice: by the seed of their selection and training, and by the text on which they happened to be
judged.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resprout.tasks.select.json_files import write_json

FILE = "comparison.json"
BASELINE, UNRECOVERED = "random", "no recovery"
CHOSEN = "rows of "
"""Begins the role of a selection, behind which its arm and seed stand."""
COVERAGE = 0.95
"""Of all intervals of one measure together: each is wider the more there are (Bonferroni)."""
MEASURES = {"divergence": "divergences", "bits per byte": "windows"}
"""By what arms are ranked, in this order, with the key of their samples; less is better."""
SIZES = ("rows", "tokens", "answer tokens", "cut answers")
"""What is told of the rows of an arm."""
QUALITY, ACCURACY = "bits per byte", "accuracy"


@dataclass(frozen=True)
class Difference:
    """How far an arm's mean lies from another's; the interval has no end where one seed was trained."""

    arm: str
    other: str
    measure: str
    mean: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether it is more than noise."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Arm:
    """One way to select, by measure the sums of each seed and unit: [seeds, units], and the units' sizes.

    `scale` turns a mean into what is shown: nats a token into bits a byte.
    """

    name: str
    sums: Mapping[str, NDArray[np.float64]]
    sizes: Mapping[str, NDArray[np.float64]]
    scale: Mapping[str, float]

    def by_seed(self, measure: str) -> list[float]:
        """The mean of each seed, in the measure's unit."""
        scale = self.scale.get(measure, 1.0) / self.sizes[measure].sum()
        return [float(one) * scale for one in self.sums[measure].sum(1)]


def role_of(name: str, seed: int) -> str:
    """The role of an arm's scores."""
    return f"{name}:{seed}"


def difference(arm: Arm, other: Arm, measure: str, comparisons: int) -> Difference:
    """The mean difference of two arms, paired by seed and unit.

    Seeds and units are both drawn, and every seed meets every unit (crossed random effects): the margin is
    that of the mean over seeds and that of the mean over units, each with Student's quantile of its own,
    added in quadrature. Each holds the rest's share too, which errs to the wide side.

    Args:
        arm: One.
        other: The other, of the same seeds and units.
        measure: What to compare.
        comparisons: How many intervals hold together.
    """
    from scipy.special import stdtrit

    gaps, sizes = arm.sums[measure] - other.sums[measure], arm.sizes[measure]
    total, (seeds, units) = float(sizes.sum()), gaps.shape
    mean = float(gaps.sum()) / seeds / total
    scale = arm.scale.get(measure, 1.0)
    if seeds < 2 or units < 2:
        return Difference(arm.name, other.name, measure, mean * scale, -math.inf, math.inf)
    of_seeds = float(gaps.sum(1).var(ddof=1)) / total**2 / seeds
    left = gaps.mean(0) - mean * sizes
    of_units = float((left**2).sum()) * units / (units - 1) / total**2
    tail = 1 - (1 - COVERAGE) / comparisons / 2
    reach = math.hypot(
        float(stdtrit(seeds - 1, tail)) * math.sqrt(of_seeds),
        float(stdtrit(units - 1, tail)) * math.sqrt(of_units),
    )
    low, high = sorted(((mean - reach) * scale, (mean + reach) * scale))
    return Difference(arm.name, other.name, measure, mean * scale, low, high)


def read_arms(inputs: Mapping[str, Path]) -> list[Arm]:
    """The arms of a run from their scores, by role `<arm>:<seed>`, in the order of the roles' names."""
    found: dict[str, dict[int, Path]] = {}
    for role, folder in inputs.items():
        name, mark, seed = role.rpartition(":")
        if mark and seed.isdigit() and not name.startswith(CHOSEN):
            found.setdefault(name, {})[int(seed)] = folder
    return [_arm(name, [by_seed[seed] for seed in sorted(by_seed)]) for name, by_seed in found.items()]


def read_sizes(inputs: Mapping[str, Path], arm: str) -> dict[str, float]:
    """Rows, tokens, answer tokens and cut answers of an arm's selection, in the mean over its seeds.

    They are read from the inputs `rows of <arm>:<seed>`.
    """
    held = [folder for role, folder in inputs.items() if role.rpartition(":")[0] == f"{CHOSEN}{arm}"]
    sizes = [_sizes(json.loads((one / "summary.json").read_text(encoding="utf-8"))) for one in held]
    return {name: statistics.fmean(one[name] for one in sizes) for name in SIZES if sizes}


def _sizes(summary: Mapping[str, Any]) -> dict[str, int]:
    """Of the selected rows, or of those of them that the dense model answered."""
    if (answered := summary.get("answers")) is None:
        names, held = ("selected_rows", "filled_tokens", "answer_tokens", "selected_cut_rows"), summary
    else:
        rows = answered["self_written_rows"] + answered["original_rows"]
        names, held = ("rows", "answered_tokens", "answer_tokens", "cut_rows"), {**answered, "rows": rows}
    return {size: held[name] for size, name in zip(SIZES, names, strict=True)}


def compare(arms: Sequence[Arm], pruned: Arm, own: str = BASELINE) -> dict[str, Any]:
    """All arms with means and deviations over seeds, and their differences to random rows; by each measure
    the best, and those that are as good as far as can be told.

    Args:
        arms: The selections.
        pruned: No recovery.
        own: The selection whose recovery the run goes on with.
    """
    measures = [one for one in (*MEASURES, ACCURACY) if all(one in arm.sums for arm in arms)]
    baseline = next(arm for arm in arms if arm.name == BASELINE)
    others = [arm for arm in arms if arm is not baseline]
    differences = [difference(arm, baseline, measure, len(others)) for measure in measures for arm in others]
    first = measures[0]
    # Text that a model learns from may move it away from the dense one: only what it knows counts here.
    sound = {one: _mean(baseline, one) <= _mean(pruned, one) for one in measures if one == QUALITY}
    if ACCURACY in measures and ACCURACY in pruned.sums:
        sound[ACCURACY] = difference(baseline, pruned, ACCURACY, 1).high >= 0
    ranked = sorted(arms, key=lambda arm: (_mean(arm, first), arm.name))
    best = {
        measure: (max if measure == ACCURACY else min)(arms, key=lambda arm: _mean(arm, measure)).name
        for measure in measures
    }
    as_good = {measure: _as_good(best[measure], arms, measure) for measure in measures}
    return {
        "arms": [
            {
                "name": arm.name,
                "seeds": len(next(iter(arm.sums.values()))),
                **{measure: _spread(arm.by_seed(measure)) for measure in measures if measure in arm.sums},
            }
            for arm in (pruned, *ranked)
        ],
        "differences": [{**asdict(one), "differs": one.differs} for one in differences],
        "best": best,
        "as_good": as_good,
        "sound": sound,
        "sentences": _sentences(differences, best, as_good, sound, arms, own),
    }


def write(inputs: Mapping[str, Path], workdir: Path, own: str) -> None:
    """Write comparison.json and metrics.json; `own` is the selection that the run goes on with."""
    arms = read_arms(inputs)
    seeds = len(next(iter(arms[0].sums.values())))
    pruned = _arm(UNRECOVERED, [inputs["pruned"]] * seeds)
    found = compare(arms, pruned, own)
    for arm in found["arms"]:
        arm |= read_sizes(inputs, arm["name"])
    write_json(workdir / FILE, _finite(found))
    metrics = {
        f"{arm['name']}_{measure.replace(' ', '_')}".replace(":", "_"): arm[measure]["mean"]
        for arm in found["arms"]
        for measure in (*MEASURES, ACCURACY)
        if measure in arm
    }
    write_json(workdir / "metrics.json", {name.replace(" ", "_"): value for name, value in metrics.items()})


def _arm(name: str, folders: Sequence[Path]) -> Arm:
    samples = [json.loads((one / "samples.json").read_text(encoding="utf-8")) for one in folders]
    metrics = json.loads((folders[0] / "metrics.json").read_text(encoding="utf-8"))
    sums, sizes, scale = (
        dict[str, NDArray[np.float64]](),
        dict[str, NDArray[np.float64]](),
        dict[str, float](),
    )
    for measure, key in MEASURES.items():
        if all(one.get(key) for one in samples):
            sums[measure] = np.array([[total for total, _ in one[key]] for one in samples])
            sizes[measure] = np.array([size for _, size in samples[0][key]], dtype=np.float64)
    bits = next(value for key, value in metrics.items() if "_bits_per_byte_" in key)
    scale["bits per byte"] = bits * float(sizes["bits per byte"].sum() / sums["bits per byte"][0].sum())
    if all(one["right"] for one in samples):
        # One answer counts as much as another, whichever task it is of.
        sums[ACCURACY] = np.array(
            [[right for task in one["right"].values() for right in task] for one in samples]
        )
        sizes[ACCURACY] = np.ones(sums[ACCURACY].shape[1])
    return Arm(name, sums, sizes, scale)


def _mean(arm: Arm, measure: str) -> float:
    return statistics.fmean(arm.by_seed(measure))


def _spread(values: Sequence[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "seeds": list(values)}


def _as_good(best: str, arms: Sequence[Arm], measure: str) -> list[str]:
    """The arms that are no more than noise behind the best: multiple comparisons with the best (Hsu 1984).

    As many intervals as there are other arms hold together, though which is the best was seen in the data.
    """
    (first,) = (arm for arm in arms if arm.name == best)
    others = [arm for arm in arms if arm is not first]
    return [arm.name for arm in others if not difference(arm, first, measure, len(others)).differs]


def _sentences(
    differences: Sequence[Difference],
    best: Mapping[str, str],
    as_good: Mapping[str, Sequence[str]],
    sound: Mapping[str, bool],
    arms: Sequence[Arm],
    own: str,
) -> list[str]:
    """Which selection won, and whether that is more than noise."""
    ill = [measure for measure, fine in sound.items() if not fine]
    if ill:
        return [
            f"By {' and '.join(ill)}, recovery on random rows left the model worse than no recovery: the "
            "training is ill, not the data, and no selection is named; lower recover.learning_rate, or train "
            "on more tokens"
        ]
    seeds = len(next(iter(arms[0].sums.values())))
    said = [_sentence(measure, name, as_good[measure], differences, seeds) for measure, name in best.items()]
    first, won = next(iter(best.items()))
    if won != own and own not in as_good[first]:
        said.append(
            f"What the run goes on with is the recovery on {own}'s rows; to go on with {won}'s, select so in "
            "the config: their recovery is in the cache."
        )
    return said


def _sentence(
    measure: str, name: str, as_good: Sequence[str], differences: Sequence[Difference], seeds: int
) -> str:
    if name == BASELINE:
        return f"By {measure}, no selection is better than random rows."
    (won,) = (one for one in differences if one.measure == measure and one.arm == name)
    if math.isinf(won.high):
        said = (
            "one seed says nothing of chance; give select.compare_seeds"
            if seeds < 2
            else "one window of text says nothing of chance; evaluate on more"
        )
        return f"By {measure}, {name} leads random rows by {_signed(won.mean)} ({said})."
    within = f"interval {_signed(won.low)} to {_signed(won.high)}"
    if won.differs:
        rest = [one for one in as_good if one != BASELINE]
        others = f"; {_listed(rest)} may be as good" if rest else ""
        return (
            f"By {measure}, {name} is best, {_signed(won.mean)} against random rows at equal training tokens "
            f"({within}: more than noise){others}."
        )
    return (
        f"By {measure}, no selection is measurably better than random rows: {name} leads by "
        f"{_signed(won.mean)}, no more than noise ({within})."
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _signed(value: float) -> str:
    return f"{value:+.3g}"


def _finite(value: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
