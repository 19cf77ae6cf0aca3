"""Stage prepare: documents to rows that a selection can choose from.

Content: rows.jsonl, rows in Alpaca form with `document`, `begin` and `end`, the place of the answer in the
document's text, or where it does not stand there as it is, that of its blocks; blocks.jsonl, the tree of each
document; metrics.json. Input: `documents` (documents.jsonl).
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import BadInput
from resprout.configs.schema import PrepareConfig, SelectConfig
from resprout.infra.identity import install_command
from resprout.infra.store.canonical import sha256_hex
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.stage import Reads, stage

if TYPE_CHECKING:
    from resprout.tasks.prepare.blocks import Block

logger = logging.getLogger(__name__)

LIBRARIES = ("sentencex", "trafilatura")
"""Packages of the extra `documents`: the one ends sentences, the other reads HTML."""
DOCUMENTS, ROWS, BLOCKS = "documents.jsonl", "rows.jsonl", "blocks.jsonl"


def settings(config: SelectConfig) -> dict[str, Any]:
    """How documents become rows."""
    return config.prepare.key_data()


def check(config: SelectConfig, base: Path) -> None:
    """BadInput where the libraries are not installed that documents are read by."""
    lacking = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if config.documents and lacking:
        raise BadInput(
            f"select.documents needs {' and '.join(lacking)}, not installed here; "
            f"{install_command('documents')}"
        )


@stage(
    "prepare",
    kind="prepared-rows",
    section="select",
    reads={"documents": Reads("data"), "dense": Reads("model", of="source")},
    gives="prepared_rows",
    libraries=("tokenizers", "trafilatura", "sentencex", "markdown-it-py", "scikit-learn"),
    computes=False,
    settings=settings,
    checks={"select.documents": check},
    metrics=("prepared_rows", "unread_documents"),
)
def prepare(job: Job[SelectConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the rows, and the tree of blocks that they are of.

    A document in which no text is found, or which its reader fails on, makes no row and is counted.

    Raises:
        BadInput: not one row comes of the documents, or a library is missing.
    """
    check(job.config, workdir)
    from resprout.tasks.models.load import load_tokenizer
    from resprout.tasks.prepare.blocks import Block, tree
    from resprout.tasks.prepare.markups import parts_of

    config, tokenizer = job.config.prepare, load_tokenizer(inputs["dense"], job.trust_remote_code)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    with (inputs["documents"] / DOCUMENTS).open(encoding="utf-8") as file:
        total = sum(1 for line in file if line.strip())
    counts = {"documents": 0, "unread_documents": 0, "blocks": 0, "prepared_rows": 0, "short_passages": 0}
    first_unread = ""
    with (
        (inputs["documents"] / DOCUMENTS).open(encoding="utf-8") as file,
        (workdir / ROWS).open("w", encoding="ascii") as rows,
        (workdir / BLOCKS).open("w", encoding="ascii") as trees,
    ):
        for document in (json.loads(line) for line in file if line.strip()):
            blocks, fault = list[Block](), "no text in it"
            try:
                blocks = tree(parts_of(document["text"], document["markup"]))
            except Exception as error:  # What a parser raises on a page that it was not written for.
                fault = f"{type(error).__name__}: {error}"
            if not blocks:
                counts["unread_documents"] += 1
                first_unread = first_unread or f"{document['name']} ({fault})"
            for block in blocks:
                trees.write(json.dumps({"document": document["id"], **vars(block)}, sort_keys=True) + "\n")
            for row in _rows(document, blocks, config, count, counts):
                rows.write(json.dumps(row, sort_keys=True) + "\n")
                counts["prepared_rows"] += 1
            counts["documents"] += 1
            counts["blocks"] += len(blocks)
            progress(counts["documents"], total, "documents")
    unread = f"{counts['unread_documents']} cannot be read, the first: {first_unread}"
    if not counts["prepared_rows"]:
        raise BadInput(
            f"of {counts['documents']} documents of select.documents not one row is left: "
            f"{counts['blocks']} blocks were found in them, {counts['short_passages']} passages are shorter "
            f"than select.prepare.min_tokens {config.min_tokens}"
            f"{f', {unread}' if first_unread else ''}; lower it, or look at the documents"
        )
    if first_unread:
        logger.warning("of %d documents %s", counts["documents"], unread)
    (workdir / "metrics.json").write_text(json.dumps(counts, sort_keys=True) + "\n", encoding="utf-8")


def _rows(
    document: Mapping[str, Any],
    blocks: list[Block],
    config: PrepareConfig,
    count: Callable[[str], int],
    counts: dict[str, int],
) -> Iterator[dict[str, Any]]:
    from resprout.tasks.data.render import compile_template
    from resprout.tasks.prepare.context import Sentences, opening
    from resprout.tasks.prepare.passages import passages, sentences

    count = cache(count)
    instruct, source = compile_template(config.instruction), document["text"]
    found = list(passages(blocks, source, config.passage_tokens, count, config.language))
    spans = [sentences(passage.text, config.language) for passage in found]
    texts = [one.text[begin:end] for one, own in zip(found, spans, strict=True) for begin, end in own]
    shown = [{"name": document["name"], "headings": list(passage.headings)} for passage in found]
    instructions = [instruct(one) for one in shown]
    known = Sentences(texts if config.context_tokens else [], instructions, count)
    first = 0
    for number, (passage, own) in enumerate(zip(found, spans, strict=True)):
        if count(passage.text) < config.min_tokens:
            counts["short_passages"] += 1
        else:
            instruction, begin, answer = instructions[number], passage.begin, passage.text
            if first and config.context_tokens:
                given = known.before(first, number, config.context_tokens)
            else:
                cut = opening(passage.text, own)
                given, answer = passage.text[:cut].rstrip(), passage.text[cut:]
                begin += cut if source[begin : passage.end] == passage.text else 0
            text = "\n".join((instruction, given, answer))
            yield {
                "id": sha256_hex(text.encode("utf-8", "surrogatepass")),
                "instruction": instruction,
                "input": given,
                "output": answer,
                "category": config.category,
                "source": document["source"],
                "document": document["id"],
                "begin": begin,
                "end": passage.end,
                "blocks": list(passage.blocks),
            }
        first += len(own)
