"""Pages in a real browser: no error in the console, every picture drawn, nothing cut, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import chromium
from resprout.tasks.core.job import silent
from resprout.tasks.report.compare import comparison_page
from resprout.tasks.report.past_run import PastRun
from resprout.tasks.report.stage import report
from tiny_report import DENSE, HOSTILE, JOB, PRUNED, RECOVERED, write_inputs

CUT = """
const wide = document.documentElement.clientWidth, found = [];
for (const one of document.body.querySelectorAll('*')) {
  if (one.closest('.scroll, .graph, pre, svg') || one.closest('details:not([open])')) continue;
  const box = one.getBoundingClientRect();
  if (box.right > wide + 1 || box.left < -1) found.push(one.tagName + ' ' + box.left + '-' + box.right);
}
return found;
"""
"""Elements that stick out of the page, beside those that scroll in a box of their own."""
PICTURES = """
return [...document.querySelectorAll('figure')].map(figure => {
  const box = figure.getBoundingClientRect(), svg = figure.querySelector('svg').getBoundingClientRect();
  const out = [...figure.querySelectorAll('svg text')].filter(text => {
    const at = text.getBoundingClientRect();
    return at.width && (at.left < box.left || at.right > box.right + 1 || at.bottom > box.bottom);
  }).map(text => text.textContent);
  return {name: figure.id, width: svg.width, height: svg.height, out: out,
          shapes: figure.querySelectorAll('svg path, svg use').length,
          caption: figure.querySelector('figcaption').innerText, title: figure.querySelector('h3').innerText};
});
"""


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    report.body(JOB, write_inputs(root), root, silent)
    runs = [
        PastRun(
            name=HOSTILE,
            method="flap",
            gate="failed",
            models={"dense": DENSE, "last": PRUNED},
            config={"a": HOSTILE},
        ),
        PastRun(name="second", models={"dense": DENSE, "last": RECOVERED}, config={"a": 1}),
    ]
    (root / "comparison.html").write_text(comparison_page(HOSTILE, "two runs", runs).text, encoding="utf-8")
    return {"report": root / "report.html", "comparison": root / "comparison.html"}


def look(driver: Any, page: Path, width: int, scheme: str) -> None:
    """Open a page in a window of this width, under a colour scheme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(page.as_uri())


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_every_picture_is_drawn_and_nothing_is_cut(
    driver: Any, pages: dict[str, Path], name: str, width: int
) -> None:
    look(driver, pages[name], width, "light")
    assert driver.get_log("browser") == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert driver.execute_script(CUT) == []
    pictures = driver.execute_script(PICTURES)
    assert len(pictures) == {"report": 9, "comparison": 2}[name]
    for one in pictures:
        assert one["width"] > 200, one
        assert one["height"] > 150, one
        assert one["shapes"] > 5, one
        assert one["out"] == [], one
        assert one["title"], one
        assert one["caption"].endswith("."), one


def test_the_policy_lets_the_style_in_and_nothing_else(driver: Any, pages: dict[str, Path]) -> None:
    look(driver, pages["report"], 1280, "light")
    style = "return getComputedStyle(document.querySelector('.tiles')).display"
    assert driver.execute_script(style) == "grid", "the style sheet's hash fits"
    driver.execute_script(
        "document.body.insertAdjacentHTML('beforeend', '<i id=i style=\"color: red\">i</i>')"
    )
    assert driver.execute_script("return getComputedStyle(document.all.i).color") != "rgb(255, 0, 0)"
    assert "style" in driver.get_log("browser")[0]["message"]
    assert driver.execute_script("return document.scripts.length") == 0


def test_dark_has_other_colours_in_page_and_pictures(driver: Any, pages: dict[str, Path]) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        look(driver, pages["report"], 1280, scheme)
        seen[scheme] = driver.execute_script(
            "const of = (one, name) => getComputedStyle(document.querySelector(one))[name];"
            "return [of('html', 'backgroundColor'), of('h1', 'color'), of('figure text', 'fill'), "
            "of('#figure-loss path[stroke=\"var(--recovered)\"]', 'stroke')]"
        )
    assert all(light != dark for light, dark in zip(seen["light"], seen["dark"], strict=True))


@pytest.mark.parametrize(("width", "columns"), [(1280, 3), (400, 1)])
def test_answers_and_numbers_lie_side_by_side_or_below_each_other(
    driver: Any, pages: dict[str, Path], width: int, columns: int
) -> None:
    look(driver, pages["report"], width, "light")
    for kind in (".tile", ".answer"):
        left = f"[...document.querySelectorAll('{kind}')].map(one => one.getBoundingClientRect().x)"
        assert driver.execute_script(f"return {left}.length") == 3
        assert driver.execute_script(f"return new Set({left}).size") == columns
