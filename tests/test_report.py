import contextlib
import dataclasses
import http.server
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
import tensorflow as tf
from sklearn import metrics

from bertbin_tf import cli, evaluation
from bertbin_tf.cli.parser import build_parser
from bertbin_tf.recipe import Recipe, train
from bertbin_tf.report import read_record, render, verdict
from bertbin_tf.report.reading import _read_curves

PLOTS = {"histogram", "roc", "precision_recall", "reliability", "loss", "spread", "learning_rate", "relative_step"}
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> </style> & \u202e {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tmp_path_factory.mktemp("trained") / "reviews"


@pytest.fixture
def run_dir(trained, tiny_preset, reviews_csv, tmp_path, eager):
    """A copy of one small run."""
    if not trained.exists():
        fields = {"preset": tiny_preset, "sequence_length": 16, "batch_size": 8, "learning_rate": 1e-2, "epochs": 2}
        train(Recipe(str(reviews_csv), **fields), trained, verbose=0)
    return Path(shutil.copytree(trained, tmp_path / "reviews"))


@pytest.fixture
def large_run_dir(run_dir):
    """The run as if it had been validated on 400 texts, one of them hostile."""
    generator = np.random.default_rng(0)
    labels = np.arange(400) % 2
    probabilities = np.clip(0.3 + 0.4 * labels + generator.normal(0, 0.2, 400), 0.001, 0.999)
    probabilities[1], texts = 0.0001, ["a great film"] * 400
    texts[1] = HOSTILE
    rewrite_rows(run_dir, texts, labels, probabilities, threshold=0.4994)
    return run_dir


def rewrite_rows(path, texts, labels, probabilities, threshold=0.5):
    pq.write_table(
        pa.table({"text": texts, "label": labels, "probability": probabilities}), path / "validation.parquet"
    )
    content = json.loads((path / "metrics.json").read_text())
    content["validation"] = evaluation.evaluate(labels, probabilities, threshold=threshold).to_dict()
    content["threshold"] = threshold
    (path / "metrics.json").write_text(json.dumps(content))


class Elements(HTMLParser):
    """Counts the elements of a page, and notes what stays open and what identifiers there are."""

    VOID = {"meta", "input", "br", "link", "img"}

    def __init__(self, page):
        super().__init__()
        self.names, self.ids, self.open, self.attributes = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_has_every_plot_and_is_well_formed(run_dir):
    page = Elements(render(run_dir))
    assert PLOTS <= set(page.ids)
    assert page.names.count("svg") == page.names.count("figure") == page.names.count("figcaption") == len(PLOTS)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))


def test_page_needs_nothing_from_elsewhere(large_run_dir):
    page = Elements(render(large_run_dir))
    assert not {"link", "img", "iframe", "object", "base"} & set(page.names)
    addresses = [value for _, name, value in page.attributes if name in ("src", "href", "action")]
    assert all(re.match(r"#|data:image/png", address) for address in addresses), addresses
    policy = next(
        value for tag, name, value in page.attributes if tag == "meta" and name == "content" and "src" in value
    )
    assert "default-src 'none'" in policy


def test_text_from_the_data_is_escaped(large_run_dir):
    page = render(large_run_dir)
    assert "<script>alert" not in page and "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "{{ 7 * 7 }}" in page


def test_every_heading_and_column_can_be_heard(large_run_dir):
    page = Elements(render(large_run_dir))
    labelled = {value for _, name, value in page.attributes if name == "aria-labelledby"}
    assert labelled <= set(page.ids)
    assert all(scope in ("row", "col") for tag, name, scope in page.attributes if tag == "th" and name == "scope")
    assert page.names.count("th") == sum(tag == "th" and name == "scope" for tag, name, _ in page.attributes)
    levels = [int(name[1]) for name in page.names if re.fullmatch(r"h\d", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_counts_and_mistakes_are_those_of_the_rows(large_run_dir):
    record = read_record(large_run_dir)
    page = render(large_run_dir)
    tn, fp, fn, tp = metrics.confusion_matrix(record.labels, record.probabilities >= 0.4994).ravel()
    for name, count in {"tn": tn, "fp": fp, "fn": fn, "tp": tp}.items():
        assert f'<td id="{name}">{count}</td>' in page
    precision = metrics.precision_score(record.labels, record.probabilities >= 0.4994)
    assert f'<dd id="precision">{precision:.3f}</dd>' in page
    # The hostile text is positive and was given 0.0001: the most confident mistake comes first.
    assert page.index("0.000</td><td>&lt;script") == min(
        match.start() for match in re.finditer(r"0\.000</td><td>", page)
    )


def test_curves_are_those_that_tensorboard_has(run_dir):
    record = read_record(run_dir)
    rates = record.by_layer("learning_rate")
    assert list(rates)[-1] == "logit" and len(rates) == len(record.by_layer("relative_step"))
    assert all((np.diff(curve.steps) > 0).all() for curve in record.curves.values())
    assert record.curves["loss/label_entropy"].values[0] == pytest.approx(np.log(2), abs=0.2)


def test_steps_that_were_taken_again_after_a_kill_count_once(tmp_path):
    for value, steps in ((1.0, range(0, 100, 10)), (2.0, range(60, 200, 10))):
        writer = tf.summary.create_file_writer(str(tmp_path))
        with writer.as_default():
            for step in steps:
                tf.summary.scalar("loss", value, step)
        writer.close()
        time.sleep(1.1)  # files are read in the order of the seconds in their names
    curve = _read_curves(tmp_path)["loss"]
    assert curve.steps.tolist() == list(range(0, 200, 10))
    assert curve.values.tolist() == [1.0] * 6 + [2.0] * 14


def test_command_on_the_page_is_the_recipe_again(run_dir):
    (command,) = re.findall(r"<code>(bertbin-tf train .+?)</code>", render(run_dir))
    arguments = vars(build_parser().parse_args(command.split()[1:]))
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert Recipe(**{name: value for name, value in arguments.items() if name in fields}) == read_record(run_dir).recipe


@pytest.mark.parametrize(
    ("labels", "probabilities", "word"),
    [
        (np.arange(200) % 2, np.where(np.arange(200) % 2, 0.8, 0.2), "trained"),
        (np.arange(200) % 2, np.full(200, 0.5) + np.arange(200) * 1e-6, "collapsed"),
        (np.arange(200) % 2, 0.5 + (np.arange(200) % 2) * 1e-3, "barely trained"),
        (np.arange(200) // 2 % 2, np.where(np.arange(200) % 2, 0.8, 0.2), "learned nothing that shows"),
        (
            np.arange(4) % 2,
            np.where(np.arange(4) % 2, 0.8, 0.2),
            "learned nothing that shows",
        ),  # 1 in 6 is so by chance
    ],
)
def test_verdict_is_that_of_the_probabilities(run_dir, labels, probabilities, word):
    rewrite_rows(run_dir, ["a film"] * len(labels), labels, probabilities)
    assert verdict(read_record(run_dir)).word == word
    assert f"Verdict: {word}" in render(run_dir)


@pytest.mark.filterwarnings("ignore:All 40 labels")
def test_rows_of_one_class_are_no_error(run_dir):
    rewrite_rows(run_dir, ["a film"] * 40, np.ones(40, "int64"), np.linspace(0.1, 0.9, 40))
    page = Elements(render(run_dir))
    assert "histogram" in page.ids and "roc" not in page.ids


def test_run_without_controller_has_a_page_without_layers(tiny_preset, reviews_csv, tmp_path, eager):
    recipe = Recipe(str(reviews_csv), preset=tiny_preset, epochs=1, batch_size=54, optimizer="adam", sequence_length=16)
    train(recipe, tmp_path / "plain", verbose=0)
    assert set(Elements(render(tmp_path / "plain")).ids) & PLOTS == PLOTS - {"learning_rate", "relative_step"}


def test_several_runs_are_compared(large_run_dir, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(large_run_dir, other)
    recipe = json.loads((other / "recipe.json").read_text())
    (other / "recipe.json").write_text(json.dumps(recipe | {"seed": 7}))
    page = tmp_path / "pages" / "both.html"
    assert cli.main(["compare", str(large_run_dir), str(other), "--output", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "reviews" in printed and "other" in printed and str(page) in printed
    elements = Elements(page.read_text())
    assert {"roc", "precision_recall", "loss", "spread"} <= set(elements.ids) and elements.open == []
    differing = re.search(r"Where the recipes differ.*?</section>", page.read_text(), re.DOTALL)[0]
    assert ">seed<" in differing and ">learning_rate<" not in differing
    provenance = json.loads((other / "provenance.json").read_text())
    provenance["data"]["validation"]["sha256"] = "another"
    (other / "provenance.json").write_text(json.dumps(provenance))
    assert cli.main(["compare", str(large_run_dir), str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same_validation_rows"] is False
    assert "cannot be compared" in render(large_run_dir, other)


def test_report_says_the_verdict_and_writes_the_page(run_dir, capsys):
    assert cli.main(["report", str(run_dir)]) == 0
    assert str(run_dir / "report.html") in capsys.readouterr().out
    assert (run_dir / "report.html").read_text() == render(run_dir)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "metrics.json").unlink(), "it has no metrics.json"),
        (lambda path: (path / "validation.parquet").write_bytes(b"PAR1"), "damaged"),
        (lambda path: (path / "provenance.json").write_text("{}"), "damaged"),
        (lambda path: (path / "history.json").write_text("{"), "damaged"),
    ],
)
def test_damaged_run_is_an_error_in_a_line(run_dir, damage, message, capsys):
    damage(run_dir)
    assert cli.main(["report", str(run_dir)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (run_dir / "report.html").exists()


def test_page_goes_into_an_html_file_only(run_dir, capsys):
    assert cli.main(["report", str(run_dir), "--output", str(run_dir / "model.keras")]) == 2
    assert "--output must name an .html file" in capsys.readouterr().err


def test_nothing_to_render_is_an_error():
    with pytest.raises(ValueError, match="the folder of a run"):
        render()


@pytest.fixture
def tensorboard(run_dir):
    """The address of a TensorBoard that reads the run."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run_dir.parent), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield f"http://localhost:{port}/data/plugin"
    process.kill()
    process.wait()


@pytest.mark.slow
def test_tensorboard_serves_series_layout_curve_and_recipe(tensorboard, run_dir):
    def ask(path, **options):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(requests.RequestException, ValueError):
                if content := requests.request("POST" if options else "GET", f"{tensorboard}/{path}", **options).json():
                    return content
            time.sleep(1)
        raise AssertionError(f"TensorBoard does not answer {path}")

    layers = "reviews/tensorboard/layers"
    names = set(ask("scalars/tags")[layers])
    assert {"loss/cross_entropy", "logits/spread", "multiplier/logit", "relative_step/transformer_layer_0"} <= names
    points = ask(f"scalars/scalars?run={layers}&tag=learning_rate/logit")
    curve = read_record(run_dir).curves["learning_rate/logit"]
    np.testing.assert_allclose([value for _, _, value in points], curve.values, rtol=1e-6)
    # Each chart of the layout finds series of the run.
    everywhere = {name for series in ask("scalars/tags").values() for name in series}
    charts = [chart for category in ask("custom_scalars/layout")["category"] for chart in category["chart"]]
    patterns = [pattern for chart in charts for pattern in chart["multiline"]["tag"]]
    assert patterns and all(any(re.fullmatch(pattern, name) for name in everywhere) for pattern in patterns)
    assert "validation/pr_curves" in ask("pr_curves/tags")["reviews/tensorboard/evaluation"]
    assert "interventions" in str(ask("text/tags"))
    query = {"experimentName": "", "colParams": [], "startIndex": 0, "sliceSize": 9}
    query["allowedStatuses"] = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_RUNNING"]
    (group,) = ask("hparams/session_groups", json=query)["sessionGroups"]
    assert group["hparams"]["learning_rate"] == 1e-2 and group["hparams"]["schedule"] == "cosine"


@pytest.fixture
def browser():
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def address(large_run_dir):
    """Of the page, on a server that knows no other."""
    page = render(large_run_dir).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/report.html" else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page if self.path == "/report.html" else b"")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/report.html"
    server.shutdown()


@pytest.mark.slow
def test_page_works_in_a_browser(browser, address, large_run_dir):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.get(address)
    sizes = browser.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('figure')]"
        ".map(figure => [figure.id, figure.querySelector('svg').clientHeight]))"
    )
    assert set(sizes) == PLOTS and all(height > 50 for height in sizes.values())

    # By keyboard alone: the slider takes arrows, and the counts follow.
    record = read_record(large_run_dir)
    slider = browser.find_element(By.ID, "threshold")
    assert slider.is_displayed()
    line = browser.find_element(By.ID, "histogram-threshold")
    before = line.rect["x"]
    slider.send_keys(Keys.PAGE_UP, Keys.ARROW_RIGHT)
    threshold = float(browser.find_element(By.ID, "threshold-value").text)
    assert threshold > 0.5 and line.rect["x"] > before
    said = record.probabilities >= threshold
    cells = [int(browser.find_element(By.ID, cell).text) for cell in ("tn", "fp", "fn", "tp")]
    assert cells == metrics.confusion_matrix(record.labels, said).ravel().tolist()
    shown = float(browser.find_element(By.ID, "f1").text)
    assert shown == pytest.approx(metrics.f1_score(record.labels, said), abs=1e-3)
    axes = browser.execute_script("return document.getElementById('histogram').querySelector('svg').clientWidth")
    assert 0 < line.rect["x"] - before < axes * (threshold - 0.5)
    browser.find_element(By.ID, "threshold-reset").click()
    assert browser.find_element(By.ID, "threshold-value").text == "0.499"  # 0.4994, of which the counts are
    cells = {cell: int(browser.find_element(By.ID, cell).text) for cell in ("tn", "fp", "fn", "tp")}
    assert cells == record.evaluation.confusion

    messages = [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]]
    assert messages == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} <= {
        address,
        address.replace("report.html", "favicon.ico"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_page_fits_and_can_be_read(browser, address, width, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get(address)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    colors = browser.execute_script(
        "const style = name => getComputedStyle(document.querySelector(name));"
        "return [style('body').backgroundColor, style('body').color, style('figcaption').color, style('svg text').fill]"
    )
    paper, *inks = [[int(part) for part in re.findall(r"\d+", color)[:3]] for color in colors]
    assert (sum(paper) < 3 * 128) == (scheme == "dark")
    for ink in inks:
        assert contrast(paper, ink) >= 4.5  # WCAG 2.2, success criterion 1.4.3


def contrast(one, other):
    """The contrast of two colours by WCAG 2.2's definition."""

    def luminance(color):
        parts = [c / 255 / 12.92 if c <= 0.04045 * 255 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        return np.dot(parts, [0.2126, 0.7152, 0.0722])

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
