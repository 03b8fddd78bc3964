"""Pages of HTML: self-contained, faithful to the numbers, drawn without an error."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("jinja2")
pytest.importorskip("vl_convert")

from snello import ModelSpec, Record, save, simplify
from snello.cli.view import server
from snello.errors import ConfigError, MissingExtraError
from snello.lab.reporting import Table
from snello.lab.reporting.pages import Figure, Page, layer_charts, write_page
from snello.lab.reporting.pages.charts import bars, front, histogram, lines
from snello.simplification import plan_of
from snello.store import build

ROWS = [
    {"epoch": e, "loss [nats]": 1 / e, "method": m}
    for e in (1, 2, 3)
    for m in ("plain", "</script>")
]
PAGE = Page(
    "LeNet & <b>friends</b>", "One sentence.",
    (Figure("Accuracy", "98.00 %", "97.50 %", "-0.50 points"), Figure("Seconds", "", "12")),
    (
        lines("Loss", ROWS, "epoch", "loss [nats]", by="method", log=True),
        front("Front", [{"size": 2.0, "accuracy": 0.9, "name": "a.b"}], "size", "accuracy", label="name"),
        histogram("Scores", torch.tensor([0.0, 1.0, 1.0, float("nan")]), "score", bins=2),
        bars("Bars", [{"layer": "conv1", "of": k, "n": 3} for k in "xy"], "layer", "n", by="of"),
    ),
    (Table("Steps", ("Step", "MACs"), (("0", "1.000"),), "a note"),),
    {"steps": [1, 2], "text": "</script><script>alert(1)"},
)  # fmt: skip


def _parts(path: Path) -> tuple[Any, list[Any], str]:
    text = path.read_text()
    data = re.search(r'id="report">(.*?)</script>', text, flags=re.S)
    assert data
    specs = re.findall(r'id="spec-\d+">(.*?)</script>', text, flags=re.S)
    return json.loads(data[1]), [json.loads(spec) for spec in specs], text


def test_a_page_holds_its_numbers_and_needs_nothing_else(tmp_path: Path) -> None:
    data, specs, text = _parts(write_page(PAGE, tmp_path / "report.html"))
    assert data == PAGE.data
    assert [spec["data"]["values"] for spec in specs] == [
        list(chart.spec["data"]["values"]) for chart in PAGE.charts
    ]
    shown = html.unescape(re.sub(r"<script.*?</script>|<[^>]+>", " ", text, flags=re.S))
    for words in (
        "LeNet & <b>friends</b>",
        "98.00 %",
        "97.50 %",
        "-0.50 points",
        "1.000",
        "a note",
    ):
        assert words in shown
    assert "<b>friends" not in text
    elements = re.sub(
        r">[^<]*<", "><", re.sub(r"<script type=.module.>.*?</script>", "", text, flags=re.S)
    )
    assert not re.search(r"(src|href)=.?(https?:)?//", elements), "nothing is loaded"
    assert len(text) < 3_000_000


def test_a_loss_that_is_no_number_leaves_a_gap(tmp_path: Path) -> None:
    """JSON.parse of a browser refuses NaN: with one, no chart of the page would be drawn."""
    rows = [{"epoch": e, "loss": v, "method": "plain"} for e, v in ((1, 0.5), (2, math.nan))]
    chart = lines("Loss", rows, "epoch", "loss", by="method")
    page = Page("t", "", charts=(chart,), data={"loss": math.inf})
    data, (spec,), text = _parts(write_page(page, tmp_path / "report.html"))
    assert [row["loss"] for row in spec["data"]["values"]] == [0.5, None]
    assert data == {"loss": None}
    head = text.partition('<script type="module"')[0]
    assert "NaN" not in head
    assert "Infinity" not in head


def test_a_histogram_counts_finite_values() -> None:
    rows = PAGE.charts[2].spec["data"]["values"]
    assert rows == [{"from": 0.0, "to": 0.5, "count": 1}, {"from": 0.5, "to": 1.0, "count": 2}]


def test_fields_with_brackets_and_points_are_columns() -> None:
    spec = PAGE.charts[0].spec["encoding"]
    assert spec["y"]["field"] == r"loss \[nats\]"
    assert spec["y"]["title"] == "loss [nats]"
    with pytest.raises(ValueError, match="quote"):
        lines("Loss", [{"epoch": 1, "one's": 2}], "epoch", "one's", by="epoch")


def test_layers_are_counted_from_the_files(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", build("lenet-300-100"), Record(ModelSpec("lenet-300-100"), (1, 28, 28)))
    charts, tables = layer_charts(
        {"dense": tmp_path / "a.pt", "gone": tmp_path / "b.pt", "x": "x.onnx"}
    )
    assert not tables
    found = {chart.spec["encoding"]["x"]["title"]: chart.spec["data"]["values"] for chart in charts}
    assert {row["network"] for rows in found.values() for row in rows} == {"dense"}
    counts = {
        kind: [row[kind] for row in found[kind]] for kind in ("parameters", "neurons", "MACs")
    }
    assert counts == {
        "parameters": [785 * 300, 301 * 100, 101 * 10],
        "neurons": [300, 100, 10],
        "MACs": [784 * 300, 300 * 100, 100 * 10],
    }
    assert len(found["milliseconds"]) >= 3
    assert layer_charts({"x": tmp_path / "x.onnx"}) == ((), ())


def test_of_a_stranger_only_the_parameters_are_drawn(tmp_path: Path) -> None:
    """The network is built for no more than its bars: a factory that nobody named is not called."""
    record = Record(ModelSpec("lenet-300-100"), (1, 28, 28))
    save(tmp_path / "a.pt", build("lenet-300-100"), record)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    content["record"] = content["record"].replace("lenet-300-100", "nowhere:factory")
    torch.save(content, tmp_path / "b.pt")
    (chart,), tables = layer_charts({"stranger": tmp_path / "b.pt"})
    assert [row["parameters"] for row in chart.spec["data"]["values"]] == [235500, 30100, 1010]
    assert not tables


def test_what_was_left_alone_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lean = simplify(build("lenet-300-100"), torch.rand(2, 1, 28, 28))
    save(tmp_path / "a.pt", lean, Record(ModelSpec("lenet-300-100"), (1, 28, 28)))
    plan = plan_of(lean)
    assert plan is not None
    wide = replace(plan, left_alone={"fc": "its reader has no rule"})
    monkeypatch.setattr("snello.lab.reporting.pages.layers.plan_of", lambda model: wide)
    _, (table,) = layer_charts({"lean": tmp_path / "a.pt"})
    assert table.rows == (("lean", "fc", "its reader has no rule"),)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_draws_every_chart_without_an_error(tmp_path: Path) -> None:
    page = write_page(PAGE, tmp_path / "report.html")
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=8000",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    except subprocess.TimeoutExpired:
        pytest.skip("Chromium did not answer within 90 s")
    assert "INFO:CONSOLE" not in found.stderr, found.stderr
    assert found.stdout.count('class="marks"') == len(PAGE.charts)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(MissingExtraError, match="report"):
        write_page(PAGE, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_runs_below_a_folder_are_compared_and_served_to_this_machine(tmp_path: Path) -> None:
    for name in ("one run", "two"):
        (tmp_path / name).mkdir()
        write_page(PAGE, tmp_path / name / "report.html")
    (tmp_path / "other.html").write_text("<p>not a page of a run")
    (tmp_path / "latin.html").write_bytes("<p>é".encode("latin-1"))
    with server(tmp_path) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        assert serving.server_address[0] == "127.0.0.1"
        root = f"http://127.0.0.1:{serving.server_port}/"
        index = urllib.request.urlopen(root).read().decode()
        links = re.findall(r'<a href="([^"]+)"', index)
        assert links == ["one%20run/report.html", "two/report.html"]
        assert index.count("97.50 %") == 2
        page = urllib.request.urlopen(root + links[0]).read()
        assert page == (tmp_path / "one run/report.html").read_bytes()
        serving.shutdown()
    with pytest.raises(ConfigError, match="there is no report"):
        server(tmp_path / "empty")
