"""The table of all keys is whole, up to date, and says what each key means."""

from __future__ import annotations

from pathlib import Path

from resprout.configs.keys import keys, table
from resprout.configs.schema import RunConfig

PAGE = Path(__file__).resolve().parents[2] / "configs" / "keys.md"


def test_the_page_is_what_the_schema_says() -> None:
    assert PAGE.read_text() == table(), "run: resprout schema --table > configs/keys.md"


def test_every_section_of_the_schema_is_there() -> None:
    found = {(section, key.name) for key in keys() for section in key.sections}
    assert {("", "register"), ("prune.target", "params_ratio"), ("infra.store", "uri")} <= found
    assert {("calibrate.text[]", "text"), ("prune.general[]", "text"), ("select.pool[]", "output")} <= found
    schema = RunConfig.model_json_schema()
    named = {
        name for section in (*schema["$defs"].values(), schema) for name in section.get("properties", ())
    }
    assert {name for _, name in found} == named


def test_every_key_has_a_meaning_and_the_required_have_no_default() -> None:
    for key in keys():
        assert len(key.meaning) > 5, key
        assert key.required == (key.default == ""), key
    required = {key.name for key in keys() if key.sections == ("",) and key.required}
    assert required == {"name", "model", "calibrate", "prune", "evaluate"}
    by_name = {(key.sections[0], key.name): key for key in keys()}
    assert by_name["prune", "units"].default == "depends"
    assert by_name["model", "dtype"].meaning.endswith("One of bfloat16, float16, float32.")


def test_no_cell_breaks_the_table() -> None:
    rows = [line for line in table().splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {6}
