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
from resprout.tasks.core.stage import Reads, Volume, stage
from resprout.tasks.data.confined import Confined, Failed
from resprout.tasks.data.render import RowTemplates, compile_template

if TYPE_CHECKING:
    from resprout.tasks.prepare.blocks import Block

logger = logging.getLogger(__name__)

LIBRARIES = ("sentencex", "trafilatura")
"""Packages of the extra `documents`: the one ends sentences, the other reads HTML."""
SECONDS_A_DOCUMENT = 120
"""Processor time for its blocks; trafilatura takes about a second for a megabyte of HTML."""
DOCUMENTS, ROWS, BLOCKS = "documents.jsonl", "rows.jsonl", "blocks.jsonl"


def settings(config: SelectConfig) -> dict[str, Any]:
    """How documents become rows."""
    return config.prepare.key_data()


def check(config: SelectConfig, base: Path) -> None:
    """BadInput where the libraries are not installed that documents are read by."""
    lacking = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if not config.documents:
        return
    if lacking:
        raise BadInput(
            f"select.documents needs {' and '.join(lacking)}, not installed here; "
            f"{install_command('documents')}"
        )
    instruct = compile_template(config.prepare.instruction)
    for headings in ([], ["heading"]):
        instruct({"name": "name", "headings": headings})


def documents_bytes(config: Mapping[str, Any], volume: Volume) -> float | None:
    """Bytes of all documents, with which their blocks grow."""
    return volume.rows_bytes


@stage(
    "prepare",
    kind="prepared-rows",
    section="select",
    reads={"documents": Reads("data"), "dense": Reads("model", of="source")},
    gives="prepared_rows",
    libraries=("tokenizers", "trafilatura", "sentencex", "markdown-it-py", "scikit-learn"),
    computes=False,
    settings=settings,
    tokens=documents_bytes,
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
    from resprout.tasks.prepare.blocks import Block, Part, tree
    from resprout.tasks.prepare.markups import parser

    config, tokenizer = job.config.prepare, load_tokenizer(inputs["dense"], job.trust_remote_code)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    instruct = RowTemplates({"": config.instruction})
    parse = Confined(parser, None, SECONDS_A_DOCUMENT)
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
            # A parser fails, hangs or crashes on a page that it was not written for.
            (parts,) = parse([{key: document[key] for key in ("text", "markup")}])
            if isinstance(parts, Failed):
                fault = f"its parser {parts}" if parts.ended else str(parts)
            else:
                blocks = tree(Part(**part) for part in parts)
            if not blocks:
                counts["unread_documents"] += 1
                first_unread = first_unread or f"{document['name']} ({fault})"
            for block in blocks:
                trees.write(json.dumps({"document": document["id"], **vars(block)}, sort_keys=True) + "\n")
            for row in _rows(document, blocks, config, count, counts, instruct):
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
    instruct: RowTemplates,
) -> Iterator[dict[str, Any]]:
    from resprout.tasks.prepare.context import Sentences, opening
    from resprout.tasks.prepare.markdown import LINE_END
    from resprout.tasks.prepare.passages import between, passages, sentences

    count = cache(count)
    source = document["text"]
    found = list(passages(blocks, source, config.passage_tokens, count, config.language))
    spans = [sentences(passage.text, config.language) for passage in found]
    texts, gaps = list[str](), list[str]()
    for before, passage, own in zip([None, *found], found, spans, strict=False):
        gap, last = between(before, passage, source) if before else "", 0
        for begin, end in own:
            texts.append(passage.text[begin:end])
            gaps.append(gap + passage.text[last:begin])
            gap, last = "", end
    asked = (
        {"name": document["title"], "headings": [one for one in passage.headings if one]} for passage in found
    )
    instructions = []
    for _, instruction in instruct.over((None, columns) for columns in asked):
        if isinstance(instruction, BadInput):
            raise instruction
        instructions.append((instruction or {})[""])
    known = Sentences(*((texts, gaps) if config.context_tokens else ([], [])), instructions, count)
    first = 0
    for number, (passage, own) in enumerate(zip(found, spans, strict=True)):
        if count(passage.text) < config.min_tokens:
            counts["short_passages"] += 1
        else:
            if first and config.context_tokens:
                given, answer = known.before(first, number, config.context_tokens), passage
            else:
                cut = opening(passage.text, own)
                given, answer = passage.text[:cut].rstrip(), passage.behind(cut, source)
            shown = [LINE_END.sub("\n", one) for one in (instructions[number], given, answer.text)]
            yield {
                "id": sha256_hex("\n".join(shown).encode("utf-8", "surrogatepass")),
                **dict(zip(("instruction", "input", "output"), shown, strict=True)),
                "category": config.category,
                "source": document["source"],
                "document": document["id"],
                "begin": answer.begin,
                "end": answer.end,
                "blocks": list(answer.blocks),
            }
        first += len(own)
