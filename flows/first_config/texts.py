"""Choose calibration and evaluation by the text that there is: sources, held-out part, lengths, samples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput
from resprout.configs.load import read_yaml
from resprout.configs.schema import RunConfig
from resprout.flows.first_config.data import Found
from resprout.flows.first_config.model import ModelLook
from resprout.flows.first_config.section import Written
from resprout.tasks.acquire.source import Context, locate

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
"""Its text stands in where the user gives none and this machine has it."""
SAMPLES, FEWEST_SAMPLES, LEAST_SAMPLES = 64, 32, 4
SAMPLE_TOKENS, WINDOW_TOKENS, SHORTEST = 256, 512, 8
"""Lengths where model and text are long enough, and the least that a config may have."""
CANDIDATES = 4
"""COLA chooses among this many windows a sample."""
JUDGED_TOKENS, COMPARED_TOKENS = 16384, 8192
FEWEST_WINDOWS = 4
HELD_OUT = (10, 20, 30, 40, 50)
"""Percent of the documents that may be held out."""
UNKNOWN = float("inf")
"""Tokens of a source that was not opened."""
SHARD = re.compile(r"\d+_of_\d+")
"""In the name of a part of a data set, which does not say of which."""
MISSING = "evaluate.perplexity.text"


@dataclass(frozen=True)
class Texts:
    """Sources of calibration and evaluation as plain data, the tokens of each, and where they come from."""

    calibration: Sequence[Mapping[str, Any]]
    judged: Sequence[Mapping[str, Any]]
    calibration_tokens: float
    judged_tokens: float
    corpus: str
    why: Sequence[str]

    @property
    def apart(self) -> bool:
        """Whether none of the text is in both parts."""
        return list(self.calibration) != list(self.judged)


def divided(found: Sequence[Found], model: ModelLook) -> Texts:
    """The documents of some sources, a part of them held out by hash; BadInput for too little text."""
    addresses = ", ".join(one.address for one in found)
    stem = re.sub(r"\W+", "_", Path(addresses).name.partition(".")[0], flags=re.ASCII).strip("_").lower()
    name = "text" if len(found) > 1 or SHARD.search(stem) or not stem else stem
    why = [line for one in found for line in one.why]

    def side(low: int, high: int) -> list[dict[str, Any]]:
        return [{**one.settings, "hash_percent": [low, high]} for one in found]

    if not all(one.opened for one in found):
        return Texts(side(20, 100), side(0, 20), UNKNOWN, UNKNOWN, name, why)
    characters = model.characters_per_token([text for one in found for text in one.part(0, 100)])

    def tokens(low: int, high: int) -> float:
        return sum(len(text) for one in found for text in one.part(low, high)) / characters

    wanted = SAMPLES * CANDIDATES * SAMPLE_TOKENS
    enough = {
        percent: min(tokens(0, percent) / JUDGED_TOKENS, tokens(percent, 100) / wanted, 1.0)
        for percent in HELD_OUT
    }
    percent = max(enough, key=lambda one: enough[one])
    number = len({text for one in found for text in one.part(0, 100)})
    more, many = "" if all(one.whole for one in found) else "more than ", "" if number == 1 else "s"
    why.append(f"{more}{number:,} different document{many}, {more}about {tokens(0, 100):,.0f} tokens")
    least = FEWEST_WINDOWS * SHORTEST, LEAST_SAMPLES * SHORTEST
    if tokens(0, percent) >= least[0] and tokens(percent, 100) >= least[1]:
        held = f"{percent} % of the documents, chosen by hash, are held out for evaluation"
        parts = side(percent, 100), side(0, percent)
        return Texts(*parts, tokens(percent, 100), tokens(0, percent), name, [*why, held])
    if tokens(0, 100) < max(least):
        raise BadInput(
            f"{addresses} holds about {tokens(0, 100):,.0f} tokens, which are too few to calibrate on and to "
            "evaluate with; give a file with some thousand words or more"
        )
    why.append(
        "TOO FEW DOCUMENTS TO HOLD ONE OUT: perplexity is measured on the text of the calibration, which "
        "flatters; give more documents (in a text file, apart by blank lines), or another file for evaluation"
    )
    whole = [dict(one.settings) for one in found]
    return Texts(whole, whole, tokens(0, 100), tokens(0, 100), name, why)


def shipped(here: Context) -> Texts | None:
    """The text of the quickstart, divided as there; None where its package is not on this machine."""
    config = RunConfig.model_validate(read_yaml(QUICKSTART))
    judged = config.evaluate.perplexity
    try:
        for source in (*config.calibrate.text, *judged.text):
            locate(source.source, here)
    except BadInput:
        return None
    calibration, held_out = (
        [source.model_dump(mode="json", exclude_unset=True) for source in sources]
        for sources in (config.calibrate.text, judged.text)
    )
    why = [
        "no --text: the text of configs/quickstart.yaml, which this machine has; better is text of your own"
    ]
    return Texts(calibration, held_out, UNKNOWN, UNKNOWN, judged.name, why)


def calibrate(texts: Texts | None, model: ModelLook) -> Written:
    """The section `calibrate`: as many and as long samples as model and text have; without text its own."""
    longest = _most(SAMPLE_TOKENS, model)
    if texts is None:
        why = [f"no text: the model writes its own samples, {longest} tokens each"]
        values = {"method": "self_generated", "samples": SAMPLES, "seq_len_tokens": longest}
        return Written("calibrate", why, values)
    held, length = texts.calibration_tokens, longest
    method = "cola" if held >= SAMPLES * CANDIDATES * longest else "random"
    while method == "random" and length > SHORTEST and held < FEWEST_SAMPLES * length:
        length = max(SHORTEST, length // 2)
    samples = SAMPLES if method == "cola" else min(SAMPLES, int(held // length))
    why = list(texts.why)
    if method == "random":
        why.append("drawn at random: too little text for cola to choose from")
    if longest < SAMPLE_TOKENS:
        why.append(f"samples are no longer than the {longest} positions of the model")
    values = {"method": method, "samples": samples, "seq_len_tokens": length, "text": list(texts.calibration)}
    return Written("calibrate", why, values)


def evaluate(texts: Texts | None, model: ModelLook) -> Written:
    """The section `evaluate`: perplexity on what is held out, and no tasks, for which there is no data."""
    window = _most(WINDOW_TOKENS, model)
    why = ["zero-shot tasks need their questions in a file; see zero_shot in configs/quickstart.yaml"]
    if texts is None:
        sources: Sequence[Mapping[str, Any]] = [{"source": "FILE"}]
        why.insert(0, "FILL IN: a file of text that the model has not seen, or give init --text FILE")
    else:
        sources = texts.judged
        while window > SHORTEST and texts.judged_tokens < FEWEST_WINDOWS * window:
            window = max(SHORTEST, window // 2)
    perplexity = {
        "name": texts.corpus if texts is not None else "text",
        "text": list(sources),
        "window_tokens": window,
        "limit_tokens": JUDGED_TOKENS,
        "kl_tokens": COMPARED_TOKENS,
    }
    return Written("evaluate", why, {"perplexity": perplexity})


def _most(tokens: int, model: ModelLook) -> int:
    """So many tokens, or as many as the model has positions."""
    positions = model.shape.max_positions if model.shape is not None else 0
    return max(SHORTEST, min(tokens, positions)) if positions else tokens
