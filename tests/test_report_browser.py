"""The report in a real browser: nothing sticks out, nothing runs, nothing is fetched, dark is dark."""

from __future__ import annotations

import html
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import browser
import pytest
from report_results import hostile_results, plain_results, run_results

from edgekd.report import to_html

# The page lies in a frame of the asked width: headless Chromium makes no window narrower than 500 pixels.
WRAPPER = """<!doctype html><body style="margin:0"><script>
window.attacked = false;
window.errors = [];
function look(frame) {
  const page = frame.contentDocument, root = page.documentElement, wide = [];
  for (const element of page.body.querySelectorAll("*")) {
    const box = element.getBoundingClientRect();
    const hidden = box.width <= 1 || element.closest("thead");
    if (!hidden && box.right > root.clientWidth + 1) wide.push(element.tagName + "." + element.getAttribute("class"));
  }
  document.getElementById("found").textContent = JSON.stringify({
    inner: root.clientWidth, scroll: root.scrollWidth, wide: wide.slice(0, 5),
    fetched: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
    attacked: window.attacked, background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    headline: page.querySelector("h1").textContent, charts: [...page.querySelectorAll("svg")]
      .filter(svg => svg.getBoundingClientRect().width > 0).map(svg => svg.getAttribute("class")),
  });
}
</script><pre id="found"></pre>
<iframe width="WIDTH" height="900" style="border:0" onload="look(this)" srcdoc="PAGE"></iframe></body>"""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--window-size=1400,1000",
    "--enable-logging=stderr",
    "--log-level=0",
)


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser of this machine. Where CI is set, a missing one is a failure."""
    return browser.chromium()


def look(chromium: str, folder: Path, page: str, *, width: int, dark: bool = False) -> dict[str, Any]:
    """What the browser sees of `page` at that width, and what it wrote to its console."""
    wrapper = folder / "wrapper.html"
    # What an attack would reach for must exist, or it could not be seen to be unused.
    page = page.replace("alert(2)", "parent.attacked=true").replace("alert(1)", "parent.attacked=true")
    wrapper.write_text(WRAPPER.replace("WIDTH", str(width)).replace("PAGE", html.escape(page)), "utf-8")
    done = subprocess.run(
        [
            chromium,
            *FLAGS,
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            wrapper.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    return {**seen, "console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]}


@pytest.mark.parametrize("width", [390, 820, 1280])
@pytest.mark.parametrize("make_results", [run_results, plain_results, hostile_results])
def test_nothing_sticks_out_runs_or_is_fetched(
    chromium: str, tmp_path: Path, make_results: Callable[[], dict[str, Any]], width: int
) -> None:
    seen = look(chromium, tmp_path, to_html(make_results()), width=width)
    assert seen["inner"] == width
    assert (seen["scroll"] <= width, seen["wide"]) == (True, [])
    assert seen["fetched"] == []
    assert seen["console"] == []
    assert seen["attacked"] is False
    assert seen["headline"]
    wrong_size = "chart wide" if width <= 820 else "chart narrow"
    assert seen["charts"]
    assert wrong_size not in seen["charts"]


def test_the_looking_itself_sees_what_is_wrong(chromium: str, tmp_path: Path) -> None:
    """A page that is too wide, attacks and fetches: without this the test above could be blind."""
    page = (
        "<!doctype html><h1>x</h1><div style='width:2000px'>wide</div><svg class='chart' width='9' height='9'></svg>"
        "<script>alert(1)</script><img src='http://127.0.0.1:9/none.png'>"
    )
    seen = look(chromium, tmp_path, page, width=390)
    assert seen["scroll"] > 390
    assert seen["wide"]
    assert seen["attacked"] is True
    assert seen["fetched"] == ["http://127.0.0.1:9/none.png"]


def test_dark_is_dark(chromium: str, tmp_path: Path) -> None:
    grounds = [look(chromium, tmp_path, to_html(run_results()), width=1280, dark=dark)["background"] for dark in (0, 1)]
    light, dark = (sum(int(part) for part in re.findall(r"\d+", ground)[:3]) for ground in grounds)
    assert light > 700
    assert dark < 120
