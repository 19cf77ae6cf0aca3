"""An auditor who has only MLflow's page: from the registered model to run, stages, data, plan and report.

A real browser on a real server: Debian's chromium and chromium-driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import servers
from browser import chromium
from commands import mlflow_of
from tiny_run import write_run

PATIENCE_SECONDS = 60
DRAWN = """return [...document.querySelectorAll('*')].some(one => one.clientWidth > 100
    && one.clientHeight > 100
    && (getComputedStyle(one).backgroundImage.includes('blob:') || (one.naturalWidth ?? 0) > 100))"""
"""Whether the page shows a picture that it has loaded."""


class Auditor:
    """Clicks on what is there to be clicked, and reads what is shown."""

    def __init__(self, driver: Any) -> None:
        from selenium.common.exceptions import ElementClickInterceptedException as Covered
        from selenium.common.exceptions import StaleElementReferenceException as Redrawn
        from selenium.webdriver.support.ui import WebDriverWait

        self.driver = driver
        ignored = [Redrawn, Covered]
        self.wait = WebDriverWait(driver, PATIENCE_SECONDS, poll_frequency=0.2, ignored_exceptions=ignored)

    def reads(self, text: str, *or_else: str) -> str:
        """The page's text, as soon as it shows `text`, or another form of it."""
        from selenium.common.exceptions import TimeoutException

        try:
            shown = (text, *or_else)
            return str(
                self.wait.until(
                    lambda driver: (now := self.text()) and any(one in now for one in shown) and now
                )
            )
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
        version = auditor.reads("Source run", "Source Run")
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


def test_the_page_of_the_model_shows_flavour_metrics_data_and_version(
    driver: Any, server: str, finished: Any, tmp_path: Path
) -> None:
    auditor, client = Auditor(driver), mlflow_of(finished.home)
    run = client.get_run(finished.result["mlflow_run_id"])
    (logged,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    try:
        driver.get(f"{server}/#/experiments/{run.info.experiment_id}/models/{logged.model_id}")
        shown = auditor.reads("words_ppl_seq32")
        assert "Flavour transformers" in shown
        assert 'mlflow.transformers.load_model("models:/tiny-pruned/1")' in shown
        text = next(one for one in run.inputs.dataset_inputs if one.dataset.name == "evaluation text")
        assert f"evaluation text (#{text.dataset.digest}" in shown
        auditor.clicks("//a[contains(@href, '/models/tiny-pruned/versions/1')]")
        auditor.reads("Source run", "Source Run")
    except BaseException:
        driver.save_screenshot(str(tmp_path / "last.png"))
        raise


@pytest.fixture(scope="module")
def swept(resprout: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The home of a sweep of two variants, and its result."""
    folder = tmp_path_factory.mktemp("swept")
    write_run(folder, measure=None)
    grid = {"prune.target.params_ratio": [0.75, 0.85]}
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"name": "sizes", "base": "run.yaml", "grid": grid}))
    often = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.5"}
    found = resprout("sweep", folder / "sweep.yaml", "--json", home=folder / "home", env=often)
    assert found.code == 0, found.err
    return folder / "home", found.result


def test_a_sweep_is_one_run_that_leads_to_its_variants_charts_and_what_they_took(
    driver: Any, swept: tuple[Path, Any], tmp_path: Path
) -> None:
    home, result = swept
    auditor = Auditor(driver)
    first = result["variants"][0]["result"]["mlflow_run_id"]
    database = f"sqlite:///{home / 'mlflow.db'}"
    with servers.mlflow_server(tmp_path, servers.free_port(), database=database) as server:
        experiment = mlflow_of(home).get_run(first).info.experiment_id
        runs = f"{server.uri}/#/experiments/{experiment}/runs"
        try:
            driver.get(f"{runs}/{result['mlflow_run_id']}")
            auditor.reads("A sweep: 2 variants of one config. Their runs are nested in this one.")
            assert "tiny-2: prune.target.params_ratio=0.85; done" in auditor.text()
            auditor.clicks("//li//a[normalize-space()='tiny-1']", True)
            auditor.reads("A compression run: the gate passed")
            assert first in driver.current_url
            auditor.reads("Parent run")

            (machine,) = mlflow_of(home).search_runs(
                [experiment],
                f"tags.`mlflow.parentRunId` = '{first}' and tags.`resprout.stage` = 'system metrics'",
            )
            driver.get(f"{runs}/{machine.info.run_id}/system-metrics")
            auditor.reads("cpu_utilization_percentage")

            driver.get(f"{runs}/{result['mlflow_run_id']}/artifacts/report/quality_against_size.svg")
            auditor.reads("report/quality_against_size.svg")
            auditor.wait.until(lambda driver: driver.execute_script(DRAWN))

            driver.get(f"{runs}/{result['mlflow_run_id']}/artifacts/report/sweep.html")
            driver.refresh()
            auditor.reads("report/sweep.html")
            auditor.wait.until(lambda driver: driver.find_elements("tag name", "iframe"))
            driver.switch_to.frame(driver.find_element("tag name", "iframe"))
            assert "Quality against size" in auditor.reads("Sweep sizes")
        except BaseException:
            driver.save_screenshot(str(tmp_path / "last.png"))
            raise
