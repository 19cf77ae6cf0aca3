"""The verdict of a run in a sentence and three numbers: size, quality, speed, and whether it is worth it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resprout.configs.result import GateResult, VerdictResult
from resprout.tasks.measure.ratio import COVERAGE, Ratio, ratio_in
from resprout.tasks.report.files import FewerBits
from resprout.tasks.report.table import Metrics, perplexity_of, speeds_of

RULE = (
    "The rule: what is gained is the larger of two shares, of weights saved or of speed won; what is paid is "
    "the larger of two others, the rise of perplexity or of the time that tokens take. It is worth it where "
    "all of the interval of what is paid lies below what is gained, not worth it where all of it lies above, "
    "and too close to call in between. What lies inside the noise counts as nothing. A file of few bits is "
    "not worth it either where the dense model in fewer bits is no larger, to 1 %, and has the lower "
    "perplexity, nor is a file that is larger than the one that came in. A gate that is not passed decides "
    "alone."
)
VERDICT = "verdict.json"
"""The file of a report that holds its verdict without the numbers."""
GOOD, BAD, EVEN = "good", "bad", "even"


TOO_FEW = "too few rounds for an interval of 95 %: measure.repeats is below 6"


@dataclass(frozen=True)
class Number:
    """One of the three numbers: the value, its interval or why it has none, and what it is of."""

    title: str
    value: str
    interval: str
    note: str
    tone: str = ""


@dataclass(frozen=True)
class Verdict:
    """The sentence without its judgement, the judgement in words and as a tone, and the three numbers."""

    sentence: str
    judgement: str
    tone: str
    numbers: tuple[Number, ...]

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.sentence}: {self.judgement}."

    @property
    def result(self) -> VerdictResult:
        """Return it without its numbers."""
        return VerdictResult(sentence=self.text, judgement=self.judgement, tone=self.tone)


@dataclass(frozen=True)
class _Share:
    """A gain or a cost as a share, with the ends of its interval; 0 and nothing else inside the noise."""

    middle: float
    low: float
    high: float


NOTHING = _Share(0.0, 0.0, 0.0)


def verdict(
    models: Mapping[str, Metrics],
    gate: GateResult | None,
    coverage: float = COVERAGE,
    fewer_bits: FewerBits | None = None,
    lead: str = "",
    larger: bool = False,
) -> Verdict:
    """The verdict on the last of the models, held against the first, the dense one; `RULE` says how.

    `coverage` is that of the speeds' intervals, which too few rounds leave below 0.95. A file of few bits is
    compared with its base in the same way, and besides with `fewer_bits`; `lead` begins the sentence.
    `larger`: what ships is larger than the file that came in, which decides.

    Perplexity counts where its ratio has an interval that leaves out 1. Of several speeds that of decoding
    counts, and where it does not differ, the first that does.
    """
    names = list(models)
    dense, final = models[names[0]], models[names[-1]]
    quality = perplexity_of(dense)
    size = final["bytes"] / dense["bytes"]
    worse = ratio_in(final, quality)
    timed = {name: ratio for name in speeds_of(dense) if (ratio := ratio_in(final, name)) is not None}
    speed = next((name for name, ratio in timed.items() if ratio.different), next(iter(timed), None))
    faster = timed[speed] if speed is not None else None
    clauses = [_size(size), _quality(worse), _speed(speed, faster)]
    numbers = (
        Number(
            "Size",
            _signed(size - 1),
            "counted, so exact",
            f"{dense['bytes'] / 1e6:,.1f} → {final['bytes'] / 1e6:,.1f} MB",
            GOOD if size < 1 else BAD if size > 1 else "",
        ),
        Number(
            "Perplexity",
            _shown(worse),
            _interval(worse),
            f"{dense[quality]:,.2f} → {final[quality]:,.2f} on held-out text; lower is better",
            _tone(worse, up=BAD, down=GOOD),
        ),
        Number(
            f"Speed ({_run_name(speed)})" if speed is not None else "Speed",
            _shown(faster),
            _interval(faster) if coverage >= COVERAGE or faster is None else TOO_FEW,
            _speeds(dense, final, speed, faster),
            _tone(faster, up=GOOD, down=BAD),
        ),
    )
    judgement, tone = _judgement(size, worse, faster, gate)
    if larger and (gate is None or gate.passed):
        judgement, tone = "not worth it, the file is larger than the one that came in", BAD
    if fewer_bits is not None and fewer_bits.lost and (gate is None or gate.passed):
        judgement, tone = f"not worth it, {fewer_bits.rival} is better and no larger", BAD
    sentence = lead + ", ".join(clause for clause in clauses if clause)
    return Verdict(sentence[0].upper() + sentence[1:], judgement, tone, numbers)


def _judgement(
    size: float, worse: Ratio | None, faster: Ratio | None, gate: GateResult | None
) -> tuple[str, str]:
    if gate is not None and not gate.passed:
        outside = " and ".join(one.name for one in gate.checks if not one.passed)
        return "not worth it, outside the gate's bounds" + (f" ({outside})" if outside else ""), BAD
    saved = _Share(1 - size, 1 - size, 1 - size)
    gain = max((saved, _share(faster)), key=lambda share: share.middle)
    if worse is None:
        return "what it costs in quality is not known", EVEN
    slower = None if faster is None else Ratio(1 / faster.median, 1 / faster.high, 1 / faster.low)
    cost = max((_share(worse), _share(slower)), key=lambda share: share.middle)
    if gain.high <= 0:
        return "not worth it, nothing was gained", BAD
    if cost.high < gain.low:
        return "worth it", GOOD
    if cost.low > gain.high:
        return "not worth it", BAD
    return "too close to call", EVEN


def _share(ratio: Ratio | None) -> _Share:
    if ratio is None or not ratio.different:
        return NOTHING
    return _Share(ratio.median - 1, ratio.low - 1, ratio.high - 1)


def _size(size: float) -> str:
    if size == 1:
        return "as large as before"
    if size >= 2:
        return f"{size:.1f} times as large"
    return f"{_percent(abs(1 - size))} {'smaller' if size < 1 else 'larger'}"


def _quality(worse: Ratio | None) -> str:
    if worse is None:
        return "perplexity without an interval"
    if not worse.different:
        return "no measurable difference in perplexity"
    return f"{_percent(abs(worse.median - 1))} {'more' if worse.median > 1 else 'less'} perplexity"


def _speed(name: str | None, faster: Ratio | None) -> str:
    if name is None or faster is None:
        return "speed not measured"
    if not faster.different:
        return "no faster on this machine"
    direction = "faster" if faster.median > 1 else "slower"
    return f"{_percent(abs(faster.median - 1))} {direction} at {_run_name(name)}"


def _speeds(dense: Metrics, final: Metrics, name: str | None, faster: Ratio | None) -> str:
    if name is None or faster is None:
        return "it was not measured"
    if faster.different:
        return f"{dense[name]:,.1f} → {final[name]:,.1f} tokens/s on this machine"
    return f"about {dense[name]:,.1f} tokens/s before and after, as far as this machine can tell"


def _run_name(name: str | None) -> str:
    return "" if name is None else "writing" if name.startswith("decode") else "reading"


def _percent(share: float) -> str:
    """A share in per cent: whole numbers, one place below 10 where it is not a whole one."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 9.95 or abs(value - round(value)) < 0.05 else f"{value:.1f} %"


def _signed(change: float) -> str:
    return f"{'+' if change > 0 else '−' if change < 0 else ''}{_percent(abs(change))}"


def _shown(ratio: Ratio | None) -> str:
    if ratio is None:
        return "–"
    return _signed(ratio.median - 1) if ratio.different else "no difference"


def _interval(ratio: Ratio | None) -> str:
    if ratio is None:
        return "no interval is known"
    return f"interval of 95 %: {_signed(ratio.low - 1)} to {_signed(ratio.high - 1)}"


def _tone(ratio: Ratio | None, up: str, down: str) -> str:
    return "" if ratio is None or not ratio.different else up if ratio.median > 1 else down
