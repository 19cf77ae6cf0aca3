"""What a part of the stack is told, and what it is not, without starting any."""

from __future__ import annotations

from pathlib import Path

from relaying import rule, write_rules
from resprout.configs.infrastructure import InfraConfig
from resprout.infra.stack.launch import without_foreign_secrets
from resprout.infra.stack.services import build_services


def test_a_part_sees_no_secret_of_others_under_any_name() -> None:
    shell = {
        "PATH": "/bin",
        "EMPTY": "",
        "OWN": "mine-1",
        "MY_OWN": "mine-1",
        "THEIRS": "theirs-2",
        "MY_THEIRS": "theirs-2",
        "DATABASE": "postgresql+asyncpg://me:pw@host/prefect",
        "MY_DATABASE": "postgresql://me:pw@host/prefect",
        "NOT_SET": "",
    }
    seen = without_foreign_secrets(shell, ("THEIRS", "DATABASE", "NOT_SET", "MISSING"), ("OWN",))
    assert set(seen) == {"PATH", "EMPTY", "OWN", "MY_OWN"}


def test_a_secret_that_serves_twice_stays_with_the_part_that_needs_it() -> None:
    shell = {"OWN": "same", "MY_OWN": "same", "THEIRS": "same"}
    assert set(without_foreign_secrets(shell, ("THEIRS",), ("OWN",))) == {"OWN", "MY_OWN"}


def test_another_run_config_of_a_rule_starts_the_relay_again_and_nothing_else(tmp_path: Path) -> None:
    rules = write_rules(tmp_path / "rules", rule("chat"))
    relay = {"rules": str(rules), "webhook_secret": "planted"}
    infra = InfraConfig.model_validate({"relay": relay})

    def texts() -> dict[str, str]:
        return {part.name: part.text() for part in build_services(infra, tmp_path / "home", ("relay",))[0]}

    before = texts()
    assert texts() == before
    config = rules.parent / "run.yaml"
    config.write_text(config.read_text() + "# another\n")
    after = texts()
    assert [name for name in before if before[name] != after[name]] == ["relay"]
