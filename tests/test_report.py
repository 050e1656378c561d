import base64
import csv
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from studies import write_run, write_sweep

from growlm.errors import InputError
from growlm.report import drawing, style
from growlm.report.charts import COSTS
from growlm.report.figures import SHOWN_POINTS, Axis, Figure, Series
from growlm.report.page import LEAST_POINTS, MOST_BYTES, Part, chart
from growlm.report.page import page as whole_page
from growlm.report.records import read
from growlm.report.report import report_page, summarise, table, verdict, write_report

AXES = {axis.key: axis for axis in COSTS}


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path / "s", {"scratch": 1.0, "grown": 0.7, "control": 0.9, "control_bad": 1.2})


def by_name(folder):
    return {row.run: row for row in summarise(folder)}


def test_rows_say_what_each_run_cost_and_reached(sweep):
    rows = by_name(sweep)
    assert {name: row.role for name, row in rows.items()} == {
        "scratch": "baseline",
        "grown": "grown",
        "control": "control",
        "control_bad": "control",
    }
    grown, scratch = rows["grown"], rows["scratch"]
    assert grown.parameters == 4000 and grown.tokens == pytest.approx(1.1e6)
    assert grown.flops == pytest.approx(6 * (1000 * 1e5 + 4000 * 1e6))
    assert grown.flops_exact == pytest.approx(1.1 * grown.flops)
    assert grown.seconds == pytest.approx(1.1e4)
    assert grown.val_loss < scratch.val_loss == grown.compared_at
    assert scratch.speedup is None and scratch.saved is None


def test_speedup_is_against_the_baseline_and_counts_against_losers(sweep):
    rows = by_name(sweep)
    assert rows["grown"].speedup == pytest.approx(1 / 0.7 - 1, abs=0.01)
    assert rows["grown"].saved == pytest.approx(0.3, abs=0.01)
    assert rows["control_bad"].speedup == pytest.approx(1 / 1.2 - 1, abs=0.01)
    assert rows["grown"].over_controls == {
        "control": pytest.approx(0.9 / 0.7 - 1, abs=0.01),
        "control_bad": pytest.approx(1.2 / 0.7 - 1, abs=0.02),
    }
    assert rows["control"].over_controls == {}


def test_table_is_aligned_and_shows_losses_and_dashes(tmp_path):
    folder = write_sweep(tmp_path / "s", {"scratch": 1.0, "grown": 1.5, "grown_later": None})
    lines = table(summarise(folder)).splitlines()
    assert lines[0].split("  ")[0] == "run" and "speed-up" in lines[0] and "compute saved" in lines[0]
    column = lines[0].index("compute saved") + len("compute saved")
    cells = {line.split()[0]: line[:column].split() for line in lines[2:]}
    assert cells["scratch"][4:] == ["baseline", "-"]
    assert cells["grown"][4].startswith("-3") and cells["grown"][5] == "-50.0%"
    assert cells["grown_later"][1:] == ["-"] * 5
    assert {line[column - 1] for line in lines[2:]} <= set("%-")  # the numbers end where the header ends
    assert lines[-1].endswith("pending; no metrics yet")


def test_verdict_names_what_growing_saved_and_that_it_beat_every_control(sweep):
    controls, gain, _ = verdict(summarise(sweep)).splitlines()
    assert re.fullmatch(
        r"At equal FLOPs grown beats every control that was run: control \(loss -0.0\d+\), control_bad .*\.", controls
    )
    assert gain.startswith("It reached validation loss") and "less compute than scratch" in gain
    assert re.search(r"speed-up \+4[23]\.\d%, 1 seed\)", gain)


def test_verdict_says_when_a_control_does_as_well(tmp_path):
    folder = write_sweep(tmp_path / "s", {"scratch": 1.0, "grown": 0.7, "control": 0.6, "control_weak": 0.9})
    text = verdict(summarise(folder))
    assert text.startswith("At equal FLOPs grown does not beat control (loss +0.0")
    assert "; it beats control_weak (loss -0.0" in text and "every" not in text


def test_verdict_says_when_growing_lost(tmp_path):
    text = verdict(summarise(write_sweep(tmp_path / "s", {"scratch": 1.0, "grown": 1.5})))
    assert "did not pay off" in text and "50.0% more compute than scratch" in text
    assert text.startswith("There is no control of grown: ")


def test_verdict_takes_the_best_of_several_and_says_so(tmp_path):
    folder = write_sweep(tmp_path / "s", {"scratch": 1.0, "grown": 0.9, "grown_more": 0.7})
    assert verdict(summarise(folder)).startswith("There is no control of the best of 2 grown runs, grown_more: ")


def test_the_beginning_of_a_run_is_not_the_best_one(tmp_path):
    folder = write_sweep(tmp_path / "s", {"scratch": 1.0, "grown": 0.9, "grown_more": 0.7})
    sweep = json.loads((folder / "sweep.json").read_text())
    sweep["runs"]["grown_more"]["status"] = "pending"
    (folder / "sweep.json").write_text(json.dumps(sweep))
    text = verdict(summarise(folder))
    assert text.startswith("Preliminary, since these are not done: grown_more.\nThere is no control of grown: ")


def test_verdict_is_preliminary_while_runs_are_open_and_silent_without_numbers(tmp_path):
    text = verdict(summarise(write_sweep(tmp_path / "a", {"scratch": 1.0, "grown": 0.7, "control": None})))
    assert text.startswith("Preliminary, since these are not done: control.")
    assert "cannot be compared with control" in text
    assert "cannot be said yet" in verdict(summarise(write_sweep(tmp_path / "b", {"scratch": 1.0, "grown": None})))


def test_a_diverged_run_is_a_note_and_not_the_end_of_the_report(sweep):
    path = sweep / "control" / "metrics.jsonl"
    bad = json.loads(path.read_text().splitlines()[-1]) | {"step": 101, "val_loss": float("nan")}
    path.write_text(path.read_text() + json.dumps(bad) + "\n")
    row = by_name(sweep)["control"]
    assert row.val_loss is None and row.speedup is None and "not finite" in row.note
    write_report(sweep)


def test_a_failed_run_says_why(sweep):
    entry = json.loads((sweep / "sweep.json").read_text())
    entry["runs"]["control"] |= {"status": "failed", "error": "out of\nmemory"}
    (sweep / "sweep.json").write_text(json.dumps(entry))
    row = by_name(sweep)["control"]
    assert row.note == "failed: out of memory; not reached: control failed" and row.speedup is None
    assert "cannot be compared with control" in verdict(summarise(sweep))


def test_the_last_line_may_be_cut_short_and_no_other(tmp_path):
    write_run(tmp_path / "r", [(8, 1e6)])
    path = tmp_path / "r" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1][:20]]))
    assert len(read(tmp_path / "r").runs["r"].metrics) == 99
    path.write_text("\n".join([lines[0], lines[1][:20], lines[2]]))
    with pytest.raises(InputError, match=r"metrics\.jsonl:2"):
        read(tmp_path / "r")


def test_steps_told_twice_after_a_restart_count_once(tmp_path):
    write_run(tmp_path / "r", [(8, 1e6)])
    path = tmp_path / "r" / "metrics.jsonl"
    again = [json.loads(line) | {"loss": 1.5} for line in path.read_text().splitlines()[80:90]]
    path.write_text(path.read_text() + "".join(json.dumps(record) + "\n" for record in again))
    metrics = read(tmp_path / "r").runs["r"].metrics
    assert [record["step"] for record in metrics] == list(range(1, 101))
    assert [record["loss"] == 1.5 for record in metrics] == [80 <= i < 90 for i in range(100)]


@pytest.mark.parametrize(
    "content", [{}, {"metrics.jsonl": ""}, {"sweep.json": '{"runs": {"a": {}}}'}, {"sweep.json": "{"}]
)
def test_a_folder_without_metrics_is_refused_in_one_line(tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        summarise(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="no such folder"):
        write_report(tmp_path / "missing")


class Page(HTMLParser):
    """The tags and text of a page, and what its scripts hold."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.scripts, self._in = [], [], "", [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self._in = tag in ("script", "style")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in = False

    def handle_data(self, data):
        if self._in and self.tags[-1] == "script":
            self.scripts[-1] += data
        elif not self._in:
            self.text += data


def page_of(folder):
    """The page of a folder, without the figures beside it."""
    return Page(report_page(folder)[0])


def data_of(page):
    """What plotly draws, by the name of the figure; the last two scripts are plotly's and the page's."""
    figures = [json.loads(script) for script in page.scripts[:-2]]
    return {figure["config"]["toImageButtonOptions"]["filename"]: figure for figure in figures}


def curves_of(figure):
    """The traces of a figure by name, without those of its marks."""
    return {trace["name"].split(" (")[0]: trace for trace in figure["data"] if "lines" in trace["mode"]}


def places(figure, axis):
    """The x of every curve over one axis, by name."""
    buttons = figure["layout"]["updatemenus"][2]["buttons"]
    xs = next(button["args"][0]["x"] for button in buttons if button["label"] == axis)
    return {t["name"].split(" (")[0]: x for t, x in zip(figure["data"], xs, strict=True) if "lines" in t["mode"]}


def test_the_report_is_one_file_that_needs_no_network(sweep):
    path = write_report(sweep)
    assert path == sweep / "report.html"
    page = Page(path.read_text())
    links = [value for key, value in page.attributes if key in ("src", "srcset", "href")]
    assert all(link.startswith(("#part-", "data:text/csv;base64,")) for link in links)
    own = path.read_text().replace(page.scripts[-2], "")
    assert "url(" not in own and "@import" not in own and "://" not in own
    assert not {"link", "iframe", "img"} & set(page.tags)
    assert ("name", "viewport") in page.attributes
    for axis in AXES:
        assert (sweep / f"loss_{axis}.png").read_bytes().startswith(b"\x89PNG")
    assert not list(sweep.glob(".*"))  # nothing half-written is left


def test_no_script_but_the_page_s_own_may_run(sweep):
    page = page_of(sweep)
    policy = next(value for key, value in page.attributes if key == "content" and "default-src" in value)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts[-2:]]
    assert policy.endswith(f"script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}'") and "default-src 'none'" in policy


def test_page_csv_and_records_agree(sweep):
    page = Page(write_report(sweep).read_text())
    link = next(value for key, value in page.attributes if key == "href" and value.startswith("data:text/csv"))
    text = base64.b64decode(link.partition(",")[2]).decode()
    assert text == (sweep / "loss.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    figure = data_of(page)["loss"]
    drawn = curves_of(figure)
    assert set(drawn) == {row["curve"] for row in rows} == set(read(sweep).runs)
    for name, run in read(sweep).runs.items():
        measured = [record for record in run.metrics if "val_loss" in record]
        own = [row for row in rows if row["curve"] == name and row["kind"] == "measured"]
        for key in ("flops", "tokens", "seconds", "val_loss"):
            assert [float(row[key]) for row in own] == [record[key] for record in measured]
        assert drawn[name]["y"] == pytest.approx([record["val_loss"] for record in measured], rel=1e-6)
        for label, key, unit in (("FLOPs", "flops", 1), ("tokens", "tokens", 1), ("time", "seconds", 3600)):
            want = [record[key] / unit for record in measured]
            assert places(figure, label)[name] == pytest.approx(want, rel=1e-6)
    (growth,) = [row for row in rows if row["kind"] == "growth"]
    assert growth["curve"] == "grown" and growth["text"] == "layers 2 → 8"
    assert (float(growth["tokens"]), float(growth["flops"])) == pytest.approx((1e5, 6e8))


def test_a_long_curve_is_thinned_out_on_the_page_and_whole_in_the_csv(tmp_path):
    write_run(tmp_path / "r", [(8, 1e6)], steps=4000)
    page = Page(write_report(tmp_path / "r").read_text())
    (curve,) = data_of(page)["loss"]["data"]
    lines = (tmp_path / "r" / "loss.csv").read_text().splitlines()
    assert len(lines) == 1 + 4000 // 5 and len(curve["x"]) == 800  # one step in five is evaluated
    write_run(tmp_path / "s", [(8, 1e6)], steps=20005)
    page = Page(write_report(tmp_path / "s").read_text())
    (curve,) = data_of(page)["loss"]["data"]
    assert len((tmp_path / "s" / "loss.csv").read_text().splitlines()) == 1 + 4001
    assert 500 < len(curve["x"]) == len(curve["y"]) <= 1000
    assert curve["x"][-1] == pytest.approx(read(tmp_path / "s").runs["s"].metrics[-1]["flops"], rel=1e-6)


def test_a_page_that_would_be_too_large_has_its_tables_beside_it(sweep, monkeypatch):
    whole = report_page(sweep)[0]
    assert len(whole) < MOST_BYTES and "data:text/csv" in whole and 'href="loss.csv"' not in whole
    monkeypatch.setattr("growlm.report.page.MOST_BYTES", len(whole) - 20_000)
    write_report(sweep)
    page = (sweep / "report.html").read_text()
    assert "data:text/csv" not in page and data_of(Page(page)) == data_of(Page(whole))
    linked = re.findall(r'class="csv" title="[^"]*" href="([^"]*)"', page)
    assert "loss.csv" in linked and all((sweep / name).exists() for name in linked)


def test_a_page_of_very_many_curves_has_fewer_points_of_each_and_says_so():
    steps = np.arange(1, 20_001, dtype=float)
    columns = {"flops": 1.234567e15 * steps, "tokens": 12_345 * steps, "loss": 3 + 1.2345678 / steps}
    axes = tuple(Axis(key, key, "count") for key in ("flops", "tokens"))
    series = tuple(Series(f"run_{n}", f"run_{n}", columns, colour=n % 8) for n in range(60))
    figure = Figure("loss", "Loss", axes, Axis("loss", "loss", "loss"), series)
    html = whole_page("Many", "", [Part("Loss", chart(figure))], [figure])
    assert 5_300_000 < len(html.encode()) < 6_000_000
    assert "data:text/csv" not in html and 'href="loss.csv"' in html
    curves = data_of(Page(html))["loss"]["data"]
    lengths = {len(curve[key]) for curve in curves for key in ("x", "y")}
    most = int(re.search("Curves have at most ([0-9]+) points here", html)[1])
    assert len(curves) == 60 and len(lengths) == 1 and LEAST_POINTS < most / 2 < lengths.pop() <= most < SHOWN_POINTS
    assert {curve["x"][-1] for curve in curves} == {1.234567e15 * 20_000}


def test_the_page_says_what_its_experiment_expected(tmp_path):
    text = (
        "A title.\n\nCost: nothing.\n\nWhat is expected (a paper): that it grows,\nand <more>.\n\nResult: not run yet."
    )
    folder = write_sweep(tmp_path / "s", {"scratch": 1.0, "grown": 0.7}, experiment=text)
    page = report_page(folder)[0]
    assert "What is expected (a paper): that it grows, and &lt;more&gt;." in page and "not run yet" not in page
    assert page.index("What is expected") < page.index('id="part-0"')


def test_the_report_says_everything(sweep):
    page = page_of(sweep)
    rows = summarise(sweep)
    assert verdict(rows).replace("\n", "") in page.text
    for cell in (style.percent(rows[1].speedup), style.loss(rows[1].val_loss), "layers 2 → 8", "1K → 4K"):
        assert cell in page.text
    for text in ("why control_bad", "1.25e9 FLOPs", "2a100000", "growlm sweep --config='a.py' <here>", '"embed": 64'):
        assert text in page.text


def test_everything_foreign_is_escaped(tmp_path):
    evil = "</script><script>alert('1')</script><i>"
    folder = write_sweep(tmp_path / "s", {"scratch": 1.0, "grown": 0.7}, title=evil, hardware=evil, command=evil)
    sweep = json.loads((folder / "sweep.json").read_text())
    sweep["runs"]["grown"] |= {"status": "failed", "error": evil}
    sweep["runs"]["grown"]["stages"][0]["address"] = evil
    (folder / "sweep.json").write_text(json.dumps(sweep))
    (folder / "grown" / "growth-1.json").write_text(json.dumps({"operator": evil, evil: 1, "source": 1}))
    (folder / "grown" / "config.json").write_text(json.dumps({evil: evil}))
    path = folder / "grown" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], json.dumps(json.loads(lines[-1]) | {f"benchmark/{evil}": 0.5})]))
    page = page_of(folder)
    assert page.tags.count("script") == len(data_of(page)) + 2 == 10 and "i" not in page.tags
    assert page.text.count(evil) >= 7


def test_names_that_matplotlib_would_read_as_mathematics_or_leave_out_are_drawn(tmp_path):
    folder = write_sweep(tmp_path / "a_$_$", {"grown$_$": 0.5, "scratch": 1.0, "_$\\frac$": 1.2})
    write_report(folder)
    assert {"loss_flops.png", "spike.png"} <= {path.name for path in folder.glob("*.png")}
    (figure, *_) = report_page(folder)[1]
    (legend,) = drawing.draw(figure, figure.x[0]).legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["grown$_$ (grown)", "scratch (baseline)", "_$\\frac$"]


def test_a_single_run_has_a_report(tmp_path):
    write_run(tmp_path / "alone", [(2, 1e5), (8, 1e6)])
    (row,) = summarise(tmp_path / "alone")
    assert row.run == "alone" and row.role == "run" and row.speedup is None
    page = page_of(tmp_path / "alone")
    assert "Nothing to compare" in page.text and "alone, growth 1" in page.text


def test_the_report_of_single_runs_says_how_each_was_begun(tmp_path):
    for number, name in enumerate(("a", "b", "c")):
        write_run(tmp_path / name, [(2, 1e5), (8, 1e6)])
        if name != "c":  # an older one does not say it
            begun = {
                "command": f"growlm train --workdir={name} '<x>'",
                "hardware": "one chip",
                "commit": f"0{number}ab",
            }
            (tmp_path / name / "run.json").write_text(json.dumps(begun))
    alone = page_of(tmp_path / "a").text
    assert "growlm train --workdir=a '<x>'" in alone and "one chip · commit 00ab" in alone
    together = page_of(tmp_path).text
    assert "growlm train --workdir=a '<x>'\ngrowlm train --workdir=b '<x>'" in together
    assert "one chip · commit 00ab, 01ab" in together and together.count("one chip") == 1
    assert "commit" not in page_of(tmp_path / "c").text


def test_curves_are_compared_unsmoothed_and_the_page_says_so(sweep):
    rows, path = by_name(sweep), sweep / "grown" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    before, low = [record for record in records if "val_loss" in record][22:24]  # before it is as low as scratch ends
    assert low["val_loss"] > rows["scratch"].val_loss
    low["val_loss"] = rows["scratch"].val_loss - 0.1  # a single point, which a running median would pass over
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    paid = rows["scratch"].flops / (1 + by_name(sweep)["grown"].speedup)
    assert before["flops"] < paid < low["flops"]
    assert "as they were measured, unsmoothed" in page_of(sweep).text


OWN, FIXED = {"batches": 8}, {"batches": 8, "batch": 4, "length": 16}


@pytest.mark.parametrize(
    ("evaluation", "second", "own", "at_growth", "compared"),
    [
        (OWN, {}, None, "on the same held-out batches", "All validation losses are of the same held-out batches"),
        (OWN, {"length": 32}, None, "of its own stage", "not all of the same text"),
        (OWN, {"batch": 8}, None, "of its own stage", "not all of the same text"),
        (FIXED, {"length": 32, "batch": 8}, None, "on the same held-out", "All validation losses are of the same"),
        (FIXED, {}, FIXED | {"length": 8}, "of its own stage", "not all of the same text"),
    ],
)
def test_the_page_says_where_losses_are_of_the_same_text(sweep, evaluation, second, own, at_growth, compared):
    for path in sweep.glob("*/config.json"):
        first = {"batch": 4, "length": 16, "evaluation": None}
        stages = [first, first | second | {"evaluation": own}] if path.parent.name == "grown" else [first]
        path.write_text(json.dumps({"corpus": "c", "evaluation": evaluation, "stages": stages}))
    text = page_of(sweep).text
    assert at_growth in text and compared in text
    assert ("on the same held-out batches" in text) + ("of its own stage" in text) == 1
    assert ("of the same held-out batches" in text) + ("not all of the same text" in text) == 1


def test_the_page_says_that_runs_of_one_study_are_validated_on_different_text(sweep):
    for number, path in enumerate(sorted(sweep.glob("*/config.json"))):
        stages = [{"batch": 4, "length": 16 if number else 32}] * 2
        path.write_text(json.dumps({"corpus": "c", "evaluation": OWN, "stages": stages}))
    text = page_of(sweep).text
    assert "on the same held-out batches" in text and "not all of the same text" in text


def test_report_and_fit_import_no_jax():
    script = (
        "import sys, pkgutil, importlib, growlm.report, growlm.commands.report, growlm.commands.fit\n"
        "for module in pkgutil.iter_modules(growlm.report.__path__): "
        "importlib.import_module(f'growlm.report.{module.name}')\n"
        "found = {name for name in sys.modules if name.startswith(('jax', 'flax', 'orbax', 'plotly', 'growlm.'))}\n"
        "rooms = {name.split('.')[1] for name in found if name.startswith('growlm.')}\n"
        "print(*sorted({name for name in found if not name.startswith('growlm.')} | rooms))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    rooms = {"buckets", "caches", "checked", "commands", "errors", "evaluation", "files", "laws", "report", "secrets"}
    assert set(found.stdout.split()) <= rooms


def test_numbers_are_written_in_three_digits():
    assert [style.count(x) for x in (950, 1.3643e9, 999.9e6, 3e11, None)] == ["950", "1.36B", "1B", "300B", "-"]
    assert [style.flops(x) for x in (8e20, 1.234e5, None)] == ["8.00e20", "1.23e5", "-"]
    assert [style.duration(x) for x in (42, 185, 3600, 27000, None)] == ["42s", "3m 05s", "1h", "7h 30m", "-"]
    assert [style.percent(x) for x in (0.546, -0.257, None)] == ["+54.6%", "-25.7%", "-"]
