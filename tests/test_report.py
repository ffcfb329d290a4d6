"""The report: its numbers are those of result.json, and it can be read in a real browser."""

from __future__ import annotations

import html
import html.parser
import json
import re
import shutil
import subprocess

import pytest

import mpsearch
from examples import stylegan2
from mpsearch.ending import Ending
from mpsearch.flows.report import write
from mpsearch.flows.request import Request
from mpsearch.flows.running import run as answer
from mpsearch.report import text
from mpsearch.report.html import number
from mpsearch.results.plain import share, size
from tests.models import batches, net

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    model, data = stylegan2.build(small=True), stylegan2.samples(small=True)
    groups = mpsearch.Conversion(), mpsearch.Constraints(), mpsearch.Limits(), mpsearch.Execution()
    request = Request(1e-2, "rel_l2", None, 0.25, "greedy-optuna", "ieee", *groups)
    result = answer(request, model, data, Ending(), "examples.stylegan2:build")
    assert result.met and len(result.islands) > 1
    return result.save(tmp_path_factory.mktemp("report") / "mixed")


class _Cells(html.parser.HTMLParser):
    """The text of every element that says which number it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._open: str | None = None

    def handle_starttag(self, tag, attrs):
        self._open = dict(attrs).get("data-of")

    def handle_data(self, data):
        if self._open is not None:
            self.found[self._open] = data.strip()
            self._open = None


@pytest.mark.thorough
def test_no_number_differs_from_result_json(written):
    result = json.loads((written / "result.json").read_text())
    cells = _Cells()
    cells.feed((written / "report.html").read_text())
    assert len(cells.found) == 20
    for place, shown in cells.found.items():
        value = result
        for key in place.split("."):
            value = value[key]
        if place.endswith("fp32_flops"):
            assert shown == share(value), place
        elif place.endswith("bytes"):
            assert shown == size(value), place
        elif isinstance(value, int):
            assert shown == str(value), place
        else:
            assert shown == number(value), place


def test_every_kept_op_is_named_with_its_line_and_reason(written):
    result = json.loads((written / "result.json").read_text())
    text = (written / "report.html").read_text()
    for op in result["kept"]:
        row = text[text.index(f'data-label="op"><code>{op["name"]}</code>') :]
        row = row[: row.index("</tr>")]
        assert op["type"] in row and op["line"] in row and op["verdict"] in row
        assert op["verdict"]


def test_one_file_that_loads_nothing(written):
    text = (written / "report.html").read_text()
    assert not re.search(r'(src|href)\s*=\s*"(?!#)', text)
    assert "@import" not in text and "<script" not in text
    assert {p.name for p in written.iterdir() if p.name.startswith("report")} == {"report.html"}


def test_it_can_be_written_anew_and_is_the_same(written):
    before = (written / "report.html").read_text()
    assert write(written) == written / "report.html"
    assert (written / "report.html").read_text() == before


def test_a_directory_without_a_result_is_one_line(tmp_path):
    with pytest.raises(mpsearch.InputError, match=r"precision\.json"):
        write(tmp_path)


#: Run in the page: what sticks out of it, and which texts of a chart, or rows, overlap.
PROBE = """
<script>
addEventListener("load", () => {
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const overlaps = (boxes) => {
    let count = 0;
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
      const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (x > 1 && y > 1) count += 1;
    }));
    return count;
  };
  const box = (e) => e.getBoundingClientRect();
  let texts = 0, small = 0;
  document.querySelectorAll("figure svg").forEach((svg) => {
    const boxes = [...svg.querySelectorAll("text")].map(box);
    texts += overlaps(boxes);
    small += boxes.filter((b) => b.height < 9).length;
  });
  const rows = overlaps([...document.querySelectorAll(".island li")].map(box));
  const charts = document.querySelectorAll("figure svg").length;
  const width = document.documentElement.clientWidth;
  parent.document.title = JSON.stringify({ width, wide, texts, rows, small, charts });
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overlaps_in_a_browser(written, tmp_path, width):
    page = tmp_path / "page.html"
    # Headless Chromium makes no window narrower than 500 pixels, but a frame may be.
    text = html.escape((written / "report.html").read_text() + PROBE)
    style = f"border: 0; width: {width}px; height: 12000px"
    page.write_text(f'<title></title><iframe style="{style}" srcdoc="{text}"></iframe>')
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    arguments += ["--disable-background-networking", "--disable-component-update"]
    arguments += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,2000"]
    done = subprocess.run(
        [CHROMIUM, *arguments, "--virtual-time-budget=5000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (title,) = re.findall(r"<title>(\{.*?\})</title>", done.stdout)
    found = json.loads(title)
    assert found == {"width": width, "wide": 0, "texts": 0, "rows": 0, "small": 0, "charts": 3}


def test_a_result_in_python_and_in_notebooks():
    model, samples = net(), batches()
    found = mpsearch.optimize(model, samples, 1e-4)
    assert len(repr(found).splitlines()) <= 3 and f"{len(found.kept)} of" in repr(found)
    assert found.summary().startswith(found.explanation[:20])
    frame = found.to_frame()
    assert list(frame.index[frame.fp32]) == found.fp32_ops
    assert len(frame) == found.candidate_ops
    page = found._repr_html_()
    assert page.count("<table>") == 1 + bool(found.kept) and found.kept[0].name in page
    assert mpsearch.__version__ == "0.2.0"


@pytest.mark.parametrize("width", [38, 78, 118])
def test_text_keeps_to_its_width(width):
    found = mpsearch.optimize(net(), batches(), 1e-4)
    lines = text.summary(found, None, lambda line, _: line, width).splitlines()
    assert max(map(len, lines)) <= width
