"""An auditor who has only MLflow's page: from the registered model to run, stages, data, plan and report.

A real browser on a real server: Debian's chromium and chromium-driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import servers
from browser import chromium

PATIENCE_SECONDS = 60


class Auditor:
    """Clicks on what is there to be clicked, and reads what is shown."""

    def __init__(self, driver: Any) -> None:
        from selenium.common.exceptions import ElementClickInterceptedException as Covered
        from selenium.common.exceptions import StaleElementReferenceException as Redrawn
        from selenium.webdriver.support.ui import WebDriverWait

        self.driver = driver
        ignored = [Redrawn, Covered]
        self.wait = WebDriverWait(driver, PATIENCE_SECONDS, poll_frequency=0.2, ignored_exceptions=ignored)

    def reads(self, text: str) -> str:
        """The page's text, as soon as it shows `text`."""
        from selenium.common.exceptions import TimeoutException

        try:
            return str(self.wait.until(lambda driver: text in self.text() and self.text()))
        except TimeoutException:
            raise AssertionError(f"no '{text}' in: {self.text()}") from None

    def text(self) -> str:
        return str(self.driver.execute_script("return document.body.innerText"))

    def clicks(self, xpath: str, new_window: bool = False) -> None:
        """Click on the first visible element; where it opens a window of its own, go there."""
        before = len(self.driver.window_handles)

        def click(driver: Any) -> bool:
            for found in driver.find_elements("xpath", xpath):
                if found.is_displayed():
                    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
                    found.click()
                    return True
            return False

        self.wait.until(click, f"nothing to click at {xpath}")
        if new_window:
            self.wait.until(lambda driver: len(driver.window_handles) > before)
            self.driver.switch_to.window(self.driver.window_handles[-1])


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def server(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, database = tmp_path_factory.mktemp("pages"), f"sqlite:///{finished.home / 'mlflow.db'}"
    with servers.mlflow_server(folder, servers.free_port(), database=database) as found:
        yield found.uri


def test_an_auditor_finds_the_way_from_the_model_to_its_proof(
    driver: Any, server: str, finished: Any, tmp_path: Path
) -> None:
    auditor = Auditor(driver)
    digests = {stage["name"]: stage["artifact"]["digest"] for stage in finished.result["stages"]}
    run_id = finished.result["mlflow_run_id"]
    try:
        driver.get(f"{server}/#/models/tiny-pruned")
        auditor.reads("Compressed by resprout. The description of each version leads to the run that made it")

        auditor.clicks("//a[normalize-space()='Version 1']")
        version = auditor.reads("Made by the run")
        assert "resprout.digest" in version
        assert "candidate" in version

        auditor.clicks("//a[normalize-space()='tiny'][contains(@href, '/runs/')][@target='_blank']", True)
        auditor.reads("A compression run: the gate passed, registered as tiny-pruned version 1.")
        assert run_id in driver.current_url
        auditor.clicks("//button[normalize-space()='Show more']")
        run = auditor.reads("Show less")
        assert f"Source model model, licence unknown, artifact {digests['acquire model'][:12]}" in run
        assert f"Recovery data pool.jsonl, licence unknown, artifact {digests['acquire pool'][:12]}" in run
        assert "resprout verify models:/tiny-pruned/1" in run
        assert f"prune: {digests['prune'][:12]}, made here" in run
        assert f"calibration text ({digests['acquire calibration text'][:32]}" in run, "a dataset input"
        whole = driver.current_window_handle

        auditor.clicks("//li//a[normalize-space()='prune']", True)
        nested = auditor.reads("Stage prune of this compression run.")
        assert f"Its artifact is {digests['prune']}. It was made in this run." in nested
        assert "Parent run" in nested
        driver.switch_to.window(whole)

        auditor.clicks("//h4[normalize-space()='Datasets']/following::*[@role='button'][1]")
        assert digests["acquire calibration text"][:36] in auditor.reads("calibration.jsonl, licence unknown")
        driver.refresh()
        auditor.reads("A compression run")

        auditor.clicks("//a[normalize-space()='pruning plan']", True)
        auditor.reads('"criterion"')
        driver.switch_to.window(whole)

        auditor.clicks("//a[normalize-space()='report']", True)
        auditor.wait.until(lambda driver: driver.find_elements("tag name", "iframe"))
        driver.switch_to.frame(driver.find_element("tag name", "iframe"))
        report = auditor.reads("Gate passed")
        assert "max_perplexity_ratio" in report
    except BaseException:
        driver.save_screenshot(str(tmp_path / "last.png"))
        raise
