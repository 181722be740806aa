"""The report as a whole: that the page is safe, offline, accessible and the same every time."""

from __future__ import annotations

import copy
import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_results import RECIPE, Page, hostile_results, plain_results, run_results

from edgekd.errors import InputRefused, MissingExtra
from edgekd.report import table_rows, to_csv, to_html, to_markdown, write_report


@pytest.mark.parametrize("make_results", [run_results, plain_results, hostile_results])
def test_the_page_asks_nothing_of_the_network_and_runs_nothing(make_results: Callable[[], dict[str, Any]]) -> None:
    html = to_html(make_results())
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {
        "i",
        "script",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "video",
        "audio",
        "image",
        "use",
    }
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert not {"src", "srcset", "action", "data", "xlink:href", "ping", "background"} & set(attributes)
        assert attributes.get("href", "data:,") == "data:,"
        assert "url(" not in attributes.get("style", "")
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert "default-src 'none'" in policy
    assert "script" not in policy


def test_every_text_is_escaped_and_still_readable() -> None:
    page = Page(to_html(hostile_results()))
    assert page.text.count("<script>alert(1)</script>") > 40
    assert len(page.all("title")) > 1  # the page's own and the tips of the marks: none was closed by a text
    assert "runs/digits" in page.text


def test_markdown_shows_hostile_texts_as_text() -> None:
    text = to_markdown(hostile_results())
    outside = re.sub(r"(?ms)^(`{3,})\n.*?^\1$", "", text)
    assert re.search(r"(?<!\\)<", outside) is None
    lengths = {len(re.findall(r"(?<!\\)\|", line)) for line in outside.splitlines() if line.startswith("|")}
    assert len(lengths) == 1
    assert RECIPE.strip() in to_markdown(run_results())


def test_equal_input_gives_equal_bytes_in_another_process() -> None:
    code = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]); from report_results import run_results; "
        "from edgekd.report import to_html, to_markdown; r = run_results(); "
        "sys.stdout.write(hashlib.sha256((to_html(r) + to_markdown(r)).encode()).hexdigest())"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1]), "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


def test_the_input_is_left_alone() -> None:
    results = run_results()
    before = copy.deepcopy(results)
    to_html(results)
    to_markdown(results)
    to_csv(results)
    assert results == before


def test_the_page_is_accessible() -> None:
    html = to_html(run_results())
    page = Page(html)
    assert page.all("html") == [{"lang": "en"}]
    for svg in page.all("svg"):
        assert svg["role"] == "img"
        assert len(svg["aria-label"]) > 40
    assert {head["scope"] for head in page.all("th")} == {"col", "row"}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for section in page.all("section"):
        assert section["aria-labelledby"] in ids
    for table in re.findall(r"<table.*?</table>", html, re.DOTALL):
        widths = {len(re.findall(r"<t[hd] ", row)) for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)}
        assert len(widths) == 1
        assert table.count('role="rowheader"') == len(re.findall("<tr", table)) - 1
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert max(b - a for a, b in itertools.pairwise(levels)) <= 1


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, WCAG 2.2."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_texts_stand_out_in_light_and_dark() -> None:
    """WCAG AA: 4.5 to 1 for every text colour on every ground that it is used on."""
    palettes = re.findall(r":root \{(.*?)\}", to_html(run_results()), re.DOTALL)
    assert len(palettes) == 3
    for palette in palettes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", palette))
        pairs = [(name, ground) for name in ("ink", "soft", "c1", "bad") for ground in ("paper", "raised")]
        pairs += [(f"c{index}", "paper") for index in range(6)]
        pairs += [(tone, f"{tone}-back") for tone in ("good", "bad", "open")]
        pairs += [("ink", f"{tone}-back") for tone in ("bad", "open")]
        for text, ground in pairs:
            a, b = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
            assert (a + 0.05) / (b + 0.05) >= 4.5, (text, ground)


def test_the_page_tells_how_the_numbers_came_about() -> None:
    text = Page(to_html(run_results())).text
    for part in ("AMD EPYC 9R14", "avx512_vnni", "1.31.1", "CC BY 4.0", "34,500", "edgekd distill-and-export digits"):
        assert part in text
    assert 'model = "dscnn_s"' in text
    assert "21,840 parameters, 294,912 multiply-adds" in text
    assert "fpu" not in text
    assert "0.1 %" in text  # steal share of the conditions


def test_half_a_surrogate_pair_does_not_stop_the_report(tmp_path: Path) -> None:
    results = run_results()
    results["run"]["name"] = "half \ud800 pair"
    paths = write_report(results, tmp_path / "new")
    assert [path.name for path in paths] == ["report.html", "report.md"]
    assert "half ? pair" in paths[1].read_text("utf-8")


def test_without_jinja2_the_pip_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtra, match=r"the HTML report needs the package 'jinja2'.*'edgekd\[report\]'"):
        to_html(run_results())
    assert to_markdown(run_results()).startswith("# digits")
    assert to_csv(run_results()).startswith("candidate,")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "edgekd.results/2"}, r"schema is 'edgekd.results/2', expected 'edgekd.results/1'; measure again"),
        ({"schema": None}, r"schema is None, expected 'edgekd.results/1'"),
        ({"rows": None}, r"'rows' is missing or not a list of objects; the file is damaged"),
        ({"candidates": ["a"]}, r"'candidates' is missing or not a list of objects"),
    ],
)
def test_what_is_no_result_is_refused(change: dict[str, Any], message: str) -> None:
    for make in (to_html, to_markdown, to_csv, table_rows):
        with pytest.raises(InputRefused, match=message):
            make({**plain_results(), **change})


def test_a_result_with_the_least_that_there_can_be_makes_a_page() -> None:
    least = {"schema": "edgekd.results/1", "candidates": [], "rows": []}
    page = Page(to_html(least))
    assert "No candidate could be measured to the end." in page.text
    assert page.all("svg") == []
