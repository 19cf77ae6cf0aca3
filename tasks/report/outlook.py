"""Quality against tokens in a run's recoveries, one after another, and where a longer run would go."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resprout.tasks.recover import ladder
from resprout.tasks.recover.curve import FEWEST, Law, fit
from resprout.tasks.report.charts import Band, Chart, Line, Span, lines

AHEAD = (2, 4)
"""So many times the tokens the law is drawn to."""
STEPS = 24
"""Points of its line."""
GO_ON = "go on (resprout run CONFIG --continue-recovery 2x)"
HEADS = ("method", "tokens", "seconds", "held-out loss before", "after", "")


@dataclass(frozen=True)
class Recovery:
    """What the artifact of a recovery says of how it went; of a rung that handed its model on nothing."""

    history: Sequence[Mapping[str, float]]
    metrics: Mapping[str, float]
    rungs: Sequence[ladder.Climbed]

    @classmethod
    def of(cls, files: Collection[str], read: Callable[[str], str]) -> Recovery:
        """From the artifact's files, of which `read` gives the text."""

        def text(name: str) -> str:
            return read(name) if name in files else ""

        return cls(
            [json.loads(line) for line in text("history.jsonl").split("\n") if line.strip()],
            json.loads(text("metrics.json") or "{}"),
            [ladder.Climbed(**one) for one in json.loads(text(ladder.FILE) or "[]")],
        )

    @classmethod
    def in_folder(cls, folder: Path) -> Recovery:
        """From the artifact's folder."""
        files = [path.name for path in folder.iterdir() if path.is_file()]
        return cls.of(files, lambda name: (folder / name).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Training:
    """Losses of one recovery on the held-out slice, after tokens counted from the first recovery's start.

    Losses of trainings on equal `scale` compare: of one mix of distillation and cross-entropy, by models
    between which nothing was cut.
    """

    begin: float
    end: float
    looks: tuple[Span, ...]
    scale: tuple[float, int]


@dataclass(frozen=True, eq=False)
class Outlook:
    """All trainings, the points that compare with the last one's end, and the law through them if any."""

    trainings: tuple[Training, ...]
    points: tuple[Span, ...]
    of_ends: bool
    """Points are ends of trainings; else the looks of one."""
    law: Law | None

    @classmethod
    def of(cls, recoveries: Iterable[Recovery], best: bool = False) -> Outlook:
        """From recoveries in their order; `best`: trainings keep their best weights."""
        found = tuple(_trainings(recoveries))
        if not found:
            return cls((), (), False, None)
        alike = list(itertools.takewhile(lambda one: one.scale == found[-1].scale, reversed(found)))[::-1]
        ends = [alike[0].looks[0], *(_end(one, best) for one in alike)]
        of_ends = len(ends) >= FEWEST
        points = ends if of_ends else list(alike[-1].looks)
        return cls(found, tuple(points), of_ends, fit(*zip(*points, strict=True)))

    @property
    def sentence(self) -> str:
        """What twice the tokens would bring; empty where nothing was trained by a loss."""
        if not self.trainings:
            return ""
        if self.law is None:
            return (
                f"Where a longer recovery would go cannot be told: {len(self.points)} looks at the held-out "
                f"slice are too few for a fit, which needs {FEWEST}."
            )
        law, (twice, more) = self.law, (times * self.law.tokens for times in AHEAD)
        now, gain, then, later = law.at(law.tokens).value, law.gain(twice), law.at(twice), law.at(more)
        least = ladder.PAYS * now
        if gain.high < least:
            so = "which is no change that can be seen"
        elif gain.low > 0 and gain.value >= least:
            so = f"so {GO_ON}"
        else:
            so = "which leaves open whether it pays"
        return (
            f"Twice the tokens ({twice:,.0f}) would bring the held-out loss from {now:.4g} to about "
            f"{then.value:.4g} ({then.low:.4g} to {then.high:.4g}), {so}; four times to {later.value:.4g} "
            f"({later.low:.4g} to {later.high:.4g})."
        )

    @property
    def note(self) -> str:
        """How the fit is made, and how far it is to be trusted."""
        if self.law is None:
            return ""
        law = self.law
        how = "" if law.exponent_is_fitted else " (given, as fewer than 7 points do not tell it)"
        of = (
            f"the pruned start and the ends of {law.points - 1} trainings, where the learning rate is zero"
            if self.of_ends
            else f"the {law.points} looks of the last training. Those before its end lie above what a "
            "training that ended there would reach, as the learning rate was still high: take it for a hint. "
            "Ends of several trainings (recover.ladder, --continue-recovery) tell more"
        )
        return (
            f"Power law a + b * (tokens + c)^-d with d = {law.exponent:.2f}{how}, fitted to {of}. Intervals "
            "of 95 % are those of the profile likelihood: all curves of the family that fit nearly as well."
        )

    def chart(self) -> Iterator[Chart]:
        """The losses, and the law to four times the tokens."""
        if not self.trainings:
            return
        series = [
            Line("held-out loss", "recovered", [span for one in same for span in one.looks])
            for _, same in itertools.groupby(self.trainings, key=lambda one: one.scale)
        ]
        bands = []
        if self.law is not None:
            law, last = self.law, self.law.tokens
            first = self.points[0][0]
            past = [first + (last - first) * step / STEPS for step in range(STEPS)]
            ahead = [last * (1 + (max(AHEAD) - 1) * step / STEPS) for step in range(STEPS + 1)]
            fitted = [(at, law.at(at)) for at in (*past, *ahead)]
            series.append(Line("fit", "accent", [(at, one.value) for at, one in fitted], dashed=True))
            bands.append(
                Band("its interval of 95 %", "accent", [(at, one.low, one.high) for at, one in fitted])
            )
        says = (
            "Loss on examples that were not trained on, in nats a token, from the pruned model on through "
            f"all trainings. {self.note}"
        )
        yield lines(
            "quality", "Quality against tokens", says.strip(), series, "tokens trained on",
            "held-out loss, nats a token", bands, from_zero=False,
        )  # fmt: skip


def rungs_of(recoveries: Sequence[Recovery]) -> Sequence[ladder.Climbed]:
    """The rungs of the run's ladder; none where it has no ladder."""
    return next((one.rungs for one in reversed(recoveries) if one.rungs), ())


def rung_rows(rungs: Sequence[ladder.Climbed]) -> list[tuple[str, list[str]]]:
    """A row of a table for each rung: its label, and cells under `HEADS`."""
    return [(f"rung {number}", _cells(one)) for number, one in enumerate(rungs, 1)]


def _cells(one: ladder.Climbed) -> list[str]:
    if one.skipped:
        return [one.method, "-", "-", "-", "-", f"not climbed: {one.skipped}"]
    losses = ["-" if loss is None else f"{loss:.4g}" for loss in (one.held_out_first, one.held_out_last)]
    return [one.method, f"{one.tokens:,.0f}", f"{one.seconds:.1f}", *losses, ""]


def rung_sentences(rungs: Sequence[ladder.Climbed]) -> list[str]:
    """What became of each rung, in words."""
    found = []
    for number, one in enumerate(rungs, 1):
        if one.skipped:
            found.append(f"rung {number} ({one.method}) was not climbed: {one.skipped}")
            continue
        change = (
            ""
            if one.held_out_first is None or one.held_out_last is None
            else f", held-out loss {one.held_out_first:.4g} to {one.held_out_last:.4g}"
        )
        found.append(f"rung {number} ({one.method}): {one.tokens:,.0f} tokens in {one.seconds:.1f} s{change}")
    return found


def _trainings(recoveries: Iterable[Recovery]) -> Iterator[Training]:
    """Those that looked at a held-out slice."""
    seen, cuts = 0.0, 0
    for one in recoveries:
        if not any("loss" in entry for entry in one.history):
            continue
        # Parts of one schedule count their steps on, and between two of them something was cut.
        cuts += one.history[0]["step"] > 1
        begin, looks = seen, list[Span]()
        for entry in one.history:
            if "held_out_before" in entry:
                looks.append((begin, entry["held_out_before"]))
            seen += entry["tokens"]
            if "held_out" in entry:
                looks.append((seen, entry["held_out"]))
        if looks:
            yield Training(begin, seen, tuple(looks), (one.metrics.get("distill_weight", 0.0), cuts))


def _end(training: Training, best: bool) -> Span:
    """The loss of the weights that a training left."""
    return training.end, min(loss for _, loss in training.looks) if best else training.looks[-1][1]
