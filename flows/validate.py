"""Open what a config names: rows of its data, the model's tokenizer, sources elsewhere, the store.

What `check` finds is in the config and in headers; this takes seconds and may use the network. No weights are
read and nothing is kept, but for the probe that every run writes into a bucket.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput, Fault, ResproutError, faults_in
from resprout.configs.infrastructure import InfraConfig
from resprout.configs.load import Loaded
from resprout.configs.schema import (
    DataSource,
    DocumentSource,
    EvaluationTask,
    RowSource,
    RunConfig,
    SelectConfig,
    TextSource,
)
from resprout.flows.inputs import context, data_sources, is_elsewhere, model_files, named_sources
from resprout.infra.environment import set_variables
from resprout.infra.mlflow.errors import require_sqlite
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.acquire.rows import (
    Counts,
    Item,
    document_items,
    instruction_items,
    raw_items,
    taken,
    text_items,
)
from resprout.tasks.acquire.source import Context, Wanted, locate, pin, scheme_of
from resprout.tasks.acquire.sources.local import files_at
from resprout.tasks.data.chat import NO_CHAT, NO_TEMPLATE, rendered
from resprout.tasks.data.read import Numbered, Skip, read_rows
from resprout.tasks.evaluate.ranking import COLUMNS, PAIRWISE, paired, ranking_of
from resprout.tasks.evaluate.task_files import few_shot_of, read_task, require_examples
from resprout.tasks.evaluate.templates import faults
from resprout.tasks.gguf.splits import check_split
from resprout.tasks.models.gguf_header import read_header
from resprout.tasks.models.tokenizer_files import (
    NO_TOKENIZER,
    ChatTemplate,
    chat_template,
    gguf_chat_template,
    gguf_has_tokenizer,
    has_tokenizer,
)
from resprout.tasks.select.paser_size import check_size
from resprout.tasks.select.rows import check_categories


def probe(loaded: Loaded) -> Iterator[Fault]:
    """Each fault in what the config names; that a source is not there is for `check` to say."""
    set_variables(loaded.config.infra, loaded.home)
    asking = _asking_for_chat(loaded.config)
    here = context(loaded, Tracker(loaded.config.infra.mlflow, loaded.home).uri)
    yield from _store(loaded)
    yield from faults_in("infra.mlflow", partial(require_sqlite, here.tracking_uri or ""))
    chat: ChatTemplate | None = None
    for key, address, wanted in named_sources(loaded.config):
        if is_elsewhere(address):
            yield from faults_in(key, partial(_resolve, address, wanted, here, loaded))
        elif wanted.purpose != "data":
            files, metadata = _held(address, wanted, here)
            if metadata is not None and not gguf_has_tokenizer(metadata):
                yield key, f"{address} {NO_TOKENIZER}"
                continue
            if metadata is not None:
                yield from faults_in(key, partial(check_split, metadata, address))
            if files and key == "model.source" and asking:
                try:
                    chat = chat_template(files) if metadata is None else gguf_chat_template(metadata)
                    if chat is None:
                        yield from ((one, f"{sentence} ({address})") for one, sentence in asking.items())
                except BadInput as error:
                    yield from ((one, f"{address}: {error}") for one in asking)
    yield from row_faults(loaded, here, chat)


def _asking_for_chat(config: RunConfig) -> dict[str, str]:
    """The keys by which a chat template is needed, each with the sentence where there is none."""
    asking = {
        f"evaluate.{place}.chat": f"chat is true but {NO_CHAT}; set chat: false"
        for place, suite in config.evaluate.placed_suites.items()
        if suite.chat
    }
    if (select := config.select) is not None:
        forms = {"select.template": select.template, "select.answers.template": select.answers.template}
        asking |= {key: NO_TEMPLATE for key, form in forms.items() if form == "chat"}
    return asking


def _store(loaded: Loaded) -> Iterator[Fault]:
    store = loaded.config.infra.store
    yield from faults_in("RESPROUT_HOME", partial(_try_to_write, loaded.home))
    if store.uri is None:
        return
    opened: list[ArtifactStore] = []
    yield from faults_in("infra.store", lambda: opened.append(ArtifactStore.from_config(store, loaded.home)))
    for one in opened:
        folder = one.driver.folder("content")
        write = one.ensure_writable if folder is None else partial(_try_to_write, folder.parent)
        yield from faults_in("infra.store", write)


def _try_to_write(folder: Path) -> None:
    """BadInput where nothing can be written to a folder, or to the one in which it would be made."""
    there = folder
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"probe")
    except OSError as error:
        raise BadInput(
            f"{there} cannot be written ({error.strerror}); make it writable with room on its disk, or give "
            "another folder"
        ) from None


def _resolve(address: str, wanted: Wanted, here: Context, loaded: Loaded) -> None:
    """Raise what is wrong with a source elsewhere: it cannot be reached, or is not what is wanted."""
    require_registry(address, loaded.config.infra, loaded.home)
    names = [file.path for file in pin(address, wanted, here).files]
    if wanted.purpose != "data" and not has_tokenizer(names) and not names[0].endswith(".gguf"):
        raise BadInput(f"{address} {NO_TOKENIZER}")


def require_registry(address: str, infra: InfraConfig, home: Path) -> None:
    """BadInput where a registered model is wanted of a home in which nothing is registered; makes nothing."""
    own = home / "mlflow.db"
    if scheme_of(address) == "models" and infra.mlflow.tracking_uri is None and not own.is_file():
        raise BadInput(
            f"there is no {address}: nothing is registered in {own} yet; set infra.mlflow.tracking_uri to "
            "the server that holds it"
        )


def _held(address: str, wanted: Wanted, here: Context) -> tuple[dict[str, Path], Mapping[str, Any] | None]:
    """A model's files on this machine, and a GGUF file's metadata; nothing of what cannot be read."""
    try:
        place = locate(address, here)
        files = model_files(address, place, wanted) if place is not None else {}
        name, path = next(iter(files.items()))
        return files, read_header(path)[0] if name.endswith(".gguf") else None
    except ResproutError:
        return {}, None


ROWS = 1000
"""How many rows of each file are checked."""
CHATS = 100
"""How many rows go through a chat template."""
SAMPLES = "calibrate.samples times seq_len_tokens"
WINDOW = "evaluate.perplexity.window_tokens"
TEMPLATES = ("doc_to_text", "doc_to_choice", "doc_to_target", "gen_prefix", "description")
"""Settings of an lm-eval task that may be Jinja templates over a row."""


class FirstRows:
    """Reads the first rows of each file; `cut` says whether one has more, `seen` how many there were."""

    def __init__(self) -> None:
        self.cut, self.seen = False, 0

    def __call__(self, path: Path, form: str, skip: Skip | None, max_part: int) -> Numbered:
        rows = read_rows(path, form, skip, max_part)
        for row in islice(rows, ROWS):
            self.seen += 1
            yield row
        self.cut = self.cut or next(rows, None) is not None


def row_faults(loaded: Loaded, here: Context, chat: ChatTemplate | None = None) -> Iterator[Fault]:
    """Faults of rows, of the pool's size, of too little text, and of rows through the chat template.

    A source that is elsewhere, or is not there, has none.
    """
    config = loaded.config
    found: dict[str, list[Item]] = {}
    cut: set[str] = set()

    def look(key: str, source: DataSource, files: dict[str, Path]) -> None:
        read, counts = FirstRows(), Counts()
        items = list(_items(source, files, read, counts))
        if not items and counts.bad and counts.bad >= read.seen:
            raise BadInput(f"{source.source}: of the first rows not one is left; {counts.said}")
        if read.cut:
            cut.add(key)
        left = items if read.cut else taken(items, source, config.seed, _is_unique(source), counts)
        found[key] = list(left)

    for key, source in data_sources(config):
        if files := data_files(source.source, here):
            yield from faults_in(key, partial(look, key, source, files))
    for place, task in config.evaluate.tasks.items():
        try:
            settings = read_task(task.task, loaded.base, config.evaluate.trust_task_code)
        except BadInput:
            # A fault of its own, which `check` finds.
            continue
        own = settings.get("fewshot_config") or {}
        shown = {**settings, "description": None, **own}
        parts = [("data", task.data, settings), ("examples", task.examples, shown)]
        if task.examples is None and own and "samples" not in own and few_shot_of(place, task, settings):
            parts.append(("data", task.data, shown))
        for part, rows_of, asked in parts:
            key = f"evaluate.{place}.{part}"
            if rows_of is not None and (rows := found.get(key)):
                yield from faults_in(key, partial(_check_columns, task, rows_of, asked, rows))
        part = "data" if task.examples is None else "examples"
        key = f"evaluate.{place}.{part}"
        if key in found and key not in cut:
            yield from faults_in(
                f"evaluate.{place}.few_shot",
                partial(_check_few_shot, place, task, settings, len(found[key])),
            )

    def whole(section: str, sources: Sequence[DataSource]) -> set[str] | None:
        """Texts of all sources of a section; None where not all was seen."""
        keys = [f"{section}.{index}" for index in range(len(sources))]
        known = keys and all(key in found and key not in cut for key in keys)
        return {item.text for key in keys for item in found[key]} if known else None

    calibrate = config.calibrate
    if calibrate.method != "self_generated" and (texts := whole("calibrate.text", calibrate.text)):
        wanted = calibrate.samples * calibrate.seq_len_tokens
        yield from faults_in("calibrate.text", partial(_check_length, texts, wanted, SAMPLES))
    judged = config.evaluate.perplexity
    if texts := whole("evaluate.perplexity.text", judged.text):
        yield from faults_in(
            "evaluate.perplexity.text", partial(_check_length, texts, judged.window_tokens, WINDOW)
        )
    if config.select is None:
        return
    pool = [item.row for key, items in found.items() if key.startswith("select.pool.") for item in items]
    # What documents add is not known before they are read.
    if not config.select.documents and (texts := whole("select.pool", config.select.pool)):
        yield from faults_in("select.pool", partial(_check_size, config.select, len(texts)))
        if any(arm.method == "stratified" for arm in config.select.arms.values()):
            yield from faults_in("select.pool", partial(check_categories, pool))
    for key in ("select.template", "select.answers.template"):
        if chat is not None and pool and key in _asking_for_chat(config):
            yield from faults_in(key, partial(rendered, chat.text, chat.special_tokens, pool[:CHATS]))


def data_files(address: str, here: Context) -> dict[str, Path]:
    """The files of a source on this machine; none where it is elsewhere or is not there."""
    try:
        place = locate(address, here)
    except ResproutError:
        return {}
    return files_at(place) if place is not None else {}


def _items(source: DataSource, files: dict[str, Path], read: FirstRows, counts: Counts) -> Iterator[Item]:
    if isinstance(source, RowSource):
        return instruction_items(source, source.source, files, read, counts)
    if isinstance(source, TextSource):
        return text_items(source, source.source, files, read, counts)
    if isinstance(source, DocumentSource):
        return _first(document_items(source, source.source, files, read, counts), read)
    return raw_items(source, source.source, files, read, counts)


def _first(documents: Iterator[Item], read: FirstRows) -> Iterator[Item]:
    """The first documents by their ids: their text may be long, and no check asks for it."""
    for item in islice(documents, ROWS):
        yield Item(item.row["id"], item.hashed, {})
    read.cut = read.cut or next(documents, None) is not None


def _is_unique(source: DataSource) -> bool:
    """Whether repeats count once: rows of a benchmark stay."""
    return isinstance(source, RowSource | TextSource | DocumentSource)


def _check_columns(
    task: EvaluationTask, source: DataSource, settings: Mapping[str, Any], items: list[Item]
) -> None:
    """BadInput where a template of an lm-eval task asks for a column that a row lacks, or fails on it."""
    rows = [item.row for item in items]
    ranks = ranking_of(settings)
    for number, row in enumerate(rows if ranks is not None else (), 1):
        if left_out := sorted(set(COLUMNS) - row.keys()):
            raise _lacks("metadata.ranking", task, ", ".join(left_out), number, row, source)
    if ranks == PAIRWISE:
        rows = list(islice(paired(rows), ROWS))
    # What functions of lm-eval make of the rows is not known here.
    for key in TEMPLATES if "process_docs" not in settings else ():
        template = settings.get(key)
        if not isinstance(template, str) or "{" not in template:
            continue
        for number, lacking, sentence in faults(template, rows):
            if lacking is not None:
                raise _lacks(key, task, lacking, number, rows[number - 1], source)
            raise BadInput(
                f"{key} of task {task.name} fails on row {number} of {source.source}: {sentence}; mend the "
                "template, or leave such rows out by `where`"
            )


def _lacks(
    key: str, task: EvaluationTask, columns: str, number: int, row: Mapping[str, Any], source: DataSource
) -> BadInput:
    return BadInput(
        f"{key} of task {task.name} uses {columns}, which row {number} of {source.source} does not have; its "
        f"columns are {', '.join(sorted(row))}"
    )


def _check_few_shot(place: str, task: EvaluationTask, settings: Mapping[str, Any], held: int) -> None:
    """BadInput where a task shows more examples than there are; it may list its own, or make them of rows."""
    own = task.examples is None
    listed = own and "samples" in (settings.get("fewshot_config") or {})
    if not listed and "process_docs" not in settings and ranking_of(settings) is None:
        require_examples(task.name, few_shot_of(place, task, settings), held - own)


def _check_length(texts: set[str], tokens: int, asked: str) -> None:
    """BadInput where texts cannot have so many tokens, whatever the tokenizer: none is less than a byte."""
    # What stands between two texts, and the blank that some tokenizers put before one, count as well.
    most = sum(len(text.encode("utf-8", "surrogatepass")) + 3 for text in texts)
    if most < tokens:
        raise BadInput(
            f"the text has at most {most} tokens, its bytes, but {asked} is {tokens}; add text, or ask for "
            "fewer"
        )


def _check_size(select: SelectConfig, rows: int) -> None:
    """BadInput where a pool of so many rows cannot give what the selection asks, however long they are."""
    for arm in select.arms.values():
        check_size(arm, rows)
    if select.budget_rows is not None and select.budget_rows > rows:
        raise BadInput(
            f"select.budget_rows is {select.budget_rows} but the pool holds at most {rows} rows; add rows to "
            "select.pool, or set budget_ratio"
        )
    most = rows * select.max_len_tokens
    if select.budget_tokens is not None and select.budget_tokens > most:
        raise BadInput(
            f"select.budget_tokens is {select.budget_tokens} but the pool holds at most {most} tokens: "
            f"{rows} rows of max_len_tokens {select.max_len_tokens}; add rows to select.pool, or set "
            "budget_ratio"
        )
