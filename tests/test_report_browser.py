"""The report in a headless Chromium: no errors, no network, and charts that do what their buttons say."""

import json

import pytest
from browser import browser, find_browser
from studies import write_seeds, write_sweep
from test_fit import timing_sweep

from growlm.report.report import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium here (apt-get install chromium)"),
]

RUNS = [{"scratch": 1.0, "grown": factor, "control": 0.9} for factor in (0.70, 0.72)]
LOSS = "document.querySelector('#chart-loss .plot')"
LAPTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844, "phone": True}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = write_seeds(tmp_path_factory.mktemp("seeds") / "<runs>", RUNS, title="Three runs & <two> seeds")
    for path in folder.glob("*/*/metrics.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for number, record in enumerate(records[9::10]):
            record["benchmark/piqa/acc"] = 0.5 + 0.01 * number
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return write_report(folder)


@pytest.fixture(scope="module")
def tab():
    with browser() as found:
        yield found


@pytest.fixture
def laptop(tab, page):
    tab.open(page, **LAPTOP)
    yield tab
    assert tab.problems == []


def curves(tab, chart="loss"):
    """The names of the curves that are drawn."""
    return tab.value(
        f"document.querySelector('#chart-{chart} .plot').calcdata.map(points => points[0].trace)"
        ".filter(trace => trace.visible === true && trace.mode.includes('lines')).map(trace => trace.name)"
    )


def axis(tab, way="x", chart=LOSS):
    """Title, type and range of an axis."""
    return tab.value(f"(a => [a.title.text, a.type, ...a.range])({chart}._fullLayout.{way}axis)")


def ticks(tab, way="x"):
    return tab.value(f"[...{LOSS}.querySelectorAll('.{way}tick text')].map(tick => tick.textContent)")


def place(tab, across, down):
    """A point in the plot, in parts of its width and height; it is scrolled there."""
    tab.value(f"{LOSS}.scrollIntoView({{block: 'center'}})")
    box = f"{LOSS}.querySelector('.nsewdrag').getBoundingClientRect()"
    x, y, width, height = tab.value(f"(r => [r.x, r.y, r.width, r.height])({box})")
    return x + across * width, y + down * height


def press(tab, selector, text, chart=LOSS):
    """A click of the mouse on what has this text."""
    found = f"[...{chart}.querySelectorAll('{selector}')].find(one => one.textContent === '{text}')"
    tab.value(f"{chart}.scrollIntoView({{block: 'center'}})")
    at = tab.value(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({found}.getBoundingClientRect())")
    tab.mouse("mouseMoved", *at, button="none")
    tab.mouse("mousePressed", *at)
    tab.mouse("mouseReleased", *at)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_the_page_opens_without_errors_or_network(tab, page, device, scheme):
    tab.open(page, scheme=scheme, **device)
    assert tab.requests == [page.resolve().as_uri()]
    assert tab.problems == []
    assert tab.value("document.documentElement.scrollWidth") <= device["width"]
    assert tab.value("document.title") == "Three runs & <two> seeds"
    ground = {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]
    assert tab.value("getComputedStyle(document.body).backgroundColor") == ground
    assert tab.value(f"getComputedStyle({LOSS}.querySelector('.main-svg')).backgroundColor") == ground
    buttons = tab.value(f"[...{LOSS}.querySelectorAll('.updatemenu-button')].map(b => b.getBoundingClientRect().right)")
    assert len(buttons) == 5 and max(buttons) <= device["width"]


MARKUP = "<img src=x onerror=pwned=1><a href='javascript:pwned=1'>a<b><svg onload=pwned=1>{{7*7}}"
SCRIPT = "</script><script>pwned=1</script><base href='//evil'><form action='//evil'>" + MARKUP


def test_markup_in_names_prompts_and_texts_does_nothing(tab, tmp_path):
    run = MARKUP.replace("/", "")
    folder = write_sweep(tmp_path / "s", {"scratch": 1.0, run: 0.7}, title=SCRIPT, hardware=SCRIPT, command=SCRIPT)
    path = folder / run / "metrics.jsonl"
    *lines, last = map(json.loads, path.read_text().splitlines())
    last |= {"samples": [{"prompt": SCRIPT, "text": SCRIPT}], f"benchmark/{SCRIPT}": 0.5, f"{SCRIPT}/web": 1.0}
    path.write_text("".join(json.dumps(record) + "\n" for record in (*lines, last)))
    (folder / run / "config.json").write_text(json.dumps({"corpus": SCRIPT, SCRIPT: SCRIPT}))
    page = write_report(folder)
    tab.open(page, **LAPTOP)
    assert tab.value("document.title") == SCRIPT and tab.value("document.body.innerText").count("pwned=1") >= 5
    marks = "img[src=x], [onerror], [onload], base, form, a[href^=javascript], b b, script:not([type]):nth-of-type(n+9)"
    assert tab.value(f"document.querySelectorAll({json.dumps(marks)}).length") == 0
    assert (tab.value("typeof pwned"), tab.requests, tab.problems) == ("undefined", [page.resolve().as_uri()], [])


def test_the_policy_of_the_page_stops_what_would_get_into_it(tab, page):
    tab.open(page, **LAPTOP)
    tab.value(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(MARKUP)})")
    for script in (
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'pwned = 1'}))",
        "document.body.append(Object.assign(document.createElement('img'), {src: 'https://evil.invalid/a'}))",
        "document.head.append(Object.assign(document.createElement('base'), {href: 'https://evil.invalid'}))",
        "setTimeout('pwned = 1')",
    ):
        tab.value(script)
    assert tab.value("new Promise(done => setTimeout(() => done(typeof pwned), 200))") == "undefined"
    assert tab.value("document.baseURI") == page.resolve().as_uri()
    stopped = [problem for problem in tab.problems if "Content Security Policy" in problem]
    assert len(stopped) >= 4 and len(stopped) == len(tab.problems)


def test_tables_are_as_wide_as_the_laptop_s_screen(laptop):
    shown = "[...document.querySelectorAll('.scroll')].filter(box => box.checkVisibility())"
    assert laptop.value(f"{shown}.length > 3 && {shown}.every(box => box.scrollWidth === box.clientWidth)")


def test_every_figure_has_its_curves(laptop):
    labels = ["scratch (baseline)", "grown (grown)", "control (control)"]
    assert sorted(curves(laptop)) == sorted(3 * labels)  # two seeds and their mean
    assert len(curves(laptop, "benchmark_piqa_acc")) == 9
    charts = laptop.value("[...document.querySelectorAll('figure.chart')].map(chart => chart.id)")
    names = (
        "loss",
        "speedup",
        "gain_speedup",
        "gain",
        "benchmark_piqa_acc",
        "spike",
        "spike_training",
        "learning_rate",
        "throughput",
    )
    assert charts == [f"chart-{name}" for name in names]
    assert laptop.value(
        "[...document.querySelectorAll('.plot')].every(p => p.querySelector('path.js-line, path.point'))"
    )
    speedup = "document.querySelector('#chart-speedup .plot')"
    assert laptop.value(f"{speedup}.querySelectorAll('path.point').length") == 3  # two over scratch, one over control
    assert laptop.value(f"{speedup}.querySelectorAll('path.xerror').length") == 3
    assert laptop.value(f"[...{speedup}.querySelectorAll('.ytick text')].map(t => t.textContent)") == [
        "control",
        "grown",
    ]
    assert laptop.value(f"{LOSS}.querySelectorAll('.shapelayer path').length") == 1
    assert laptop.value(f"{LOSS}.querySelector('.annotation').textContent") == "layers 2 → 8"


def test_the_keyboard_reaches_the_bar_of_a_chart_and_opens_its_numbers(laptop):
    figure = "document.querySelector('#chart-loss')"
    laptop.value(f"{figure}.querySelector('a.csv').focus()")
    passed = []
    while len(passed) < 12 and laptop.value("document.activeElement.tagName") != "SUMMARY":
        passed.append(laptop.value("document.activeElement.tagName + document.activeElement.ariaLabel"))
        laptop.key("Tab")
    assert laptop.value("document.activeElement.textContent") == "In numbers" and "BUTTONZoom in" in passed, passed
    assert not laptop.value(f"{figure}.querySelector('table').checkVisibility()")
    laptop.key(" ")
    assert laptop.value(f"{figure}.querySelector('table').checkVisibility()")
    rows = laptop.value(
        f"[...{figure}.querySelectorAll('tr')].map(row => [...row.children].map(cell => cell.textContent))"
    )
    assert rows[0][:3] == ["curve", "at", "validation loss"] and "tokens" in rows[0]
    ends = [row for row in rows[1:] if row[1] == "its end"]
    assert len(ends) == 9 and all(float(row[2]) > 0 and row[rows[0].index("tokens")] for row in ends)
    assert [row[1] for row in rows[1:] if row[1] != "its end"] == ["layers 2 → 8"]  # of the mean, not of the seeds
    laptop.key("Tab")
    assert laptop.value("document.activeElement.closest('#chart-loss') === null")


def test_the_speed_ups_fill_their_chart(laptop):
    """The rows are spread over the plot, and the plot over most of the chart."""
    speedup = "document.querySelector('#chart-speedup .plot')"
    heights = laptop.value(f"[{speedup}._fullLayout._size.h, {speedup}.clientHeight]")
    assert heights[0] > 0.45 * heights[1]


def test_a_click_in_the_legend_hides_a_run_with_its_seeds(laptop):
    for expected in (6, 9):
        press(laptop, ".legendtext", "grown (grown)")
        laptop.value("new Promise(done => setTimeout(done, 500))")  # plotly waits for a double click
        assert len(curves(laptop)) == expected


def test_the_x_axis_can_be_chosen_and_both_be_logarithmic(laptop):
    assert axis(laptop)[:2] == ["training compute, all stages (FLOPs)", "log"]
    press(laptop, ".updatemenu-button", "tokens")
    assert axis(laptop)[:2] == ["tokens, all stages", "linear"] and "1M" in ticks(laptop)
    press(laptop, ".updatemenu-button", "log x")
    assert axis(laptop)[1] == "log" and len(ticks(laptop)) >= 3
    press(laptop, ".updatemenu-button", "time")
    assert axis(laptop)[:2] == ["training time, all stages (hours)", "linear"]
    assert axis(laptop, "y")[1] == "linear"
    press(laptop, ".updatemenu-button", "log y")
    assert axis(laptop, "y")[1] == "log"
    press(laptop, ".updatemenu-button", "log y")
    assert axis(laptop, "y")[1] == "linear"


def test_a_dragged_rectangle_is_zoomed_into_and_a_double_click_goes_back(laptop):
    before = axis(laptop), axis(laptop, "y")
    start, end = place(laptop, 0.4, 0.4), place(laptop, 0.6, 0.7)
    laptop.mouse("mouseMoved", *start, button="none")
    laptop.mouse("mousePressed", *start)
    laptop.mouse("mouseMoved", *end)
    laptop.mouse("mouseReleased", *end)
    after = axis(laptop), axis(laptop, "y")
    assert all(a[2] > b[2] and a[3] < b[3] for a, b in zip(after, before, strict=True))
    laptop.value("new Promise(done => setTimeout(done, 500))")
    for count in (1, 2):
        laptop.mouse("mousePressed", *start, clickCount=count)
        laptop.mouse("mouseReleased", *start, clickCount=count)
    assert (axis(laptop), axis(laptop, "y")) == before


def test_the_nearest_point_says_what_it_is(laptop):
    place(laptop, 0.5, 0.5)
    at = laptop.value(f"""(curve => {{
        const point = curve.getPointAtLength(0.7 * curve.getTotalLength()).matrixTransform(curve.getScreenCTM());
        return [point.x, point.y];
    }})({LOSS}.querySelectorAll('path.js-line')[2])""")
    for shift in (0, 1):  # plotly looks once it has moved
        laptop.mouse("mouseMoved", at[0] + shift, at[1], button="none")
    laptop.value("new Promise(done => setTimeout(done, 200))")
    text = laptop.value(f"{LOSS}.querySelector('.hoverlayer').textContent")
    for part in ("validation loss 2.", "FLOPs", "tokens", "time", "mean of 2 seeds"):
        assert part in text


def test_a_finger_scrolls_the_page_and_a_button_zooms(tab, page):
    tab.open(page, **PHONE)
    assert tab.value(f"{LOSS}._fullLayout.dragmode") is False
    before = axis(tab)
    tab.value(f"{LOSS}.querySelector('.modebar-btn[data-title=\"Zoom in\"]').click()")
    tab.value("new Promise(done => setTimeout(done, 300))")
    assert axis(tab)[2] > before[2] and axis(tab)[3] < before[3]
    assert tab.problems == []


def test_the_switch_overrules_the_device_and_keeps_the_view(laptop):
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = f"{LOSS}.querySelector('.xtitle').style.fill"
    line = f"{LOSS}.querySelectorAll('path.js-line')[2].style.stroke"
    laptop.value(f"Plotly.relayout({LOSS}, {{'yaxis.range': [2, 3]}}).then(() => 0)")
    seen = []
    for _ in range(3):
        seen.append((laptop.value("document.documentElement.dataset.theme"), *map(laptop.value, (ground, ink, line))))
        laptop.value("document.querySelector('#theme').click()")
        laptop.value("new Promise(done => setTimeout(done, 300))")
    light = ("rgb(255, 255, 255)", "rgb(28, 32, 36)", "rgb(0, 0, 0)")
    dark = ("rgb(21, 24, 28)", "rgb(230, 232, 234)", "rgb(255, 255, 255)")
    assert seen == [("auto", *light), ("light", *light), ("dark", *dark)]
    assert axis(laptop, "y")[2:] == [2, 3]
    laptop.scheme("dark")
    laptop.value("new Promise(done => setTimeout(done, 300))")
    assert tuple(map(laptop.value, (ground, ink, line))) == dark  # auto again


def test_the_picture_is_what_is_seen(laptop):
    laptop.value("""(HTMLAnchorElement.prototype.click = function () { window.saved = this.download }, 0)""")
    laptop.value(f"{LOSS}.querySelector('.modebar-btn[data-title*=PNG]').click()")
    laptop.value("new Promise(done => { const f = () => window.saved ? done() : setTimeout(f, 20); f(); })")
    assert laptop.value("window.saved") == "loss.png"


def test_laws_have_points_parabolas_and_minima(tab, tmp_path):
    timing_sweep(tmp_path, seeds=(0,))
    tab.open(write_report(tmp_path), **LAPTOP)
    valley, law = (f"document.querySelector('#chart-timing_{name} .plot')" for name in ("valley", "law"))
    assert len(curves(tab, "timing_valley")) == 12 and len(curves(tab, "timing_law")) == 3
    assert tab.value(f"{valley}.querySelectorAll('path.point').length") == 60 + 12
    assert tab.value(f"{valley}.querySelectorAll('path.xerror').length") == 12
    assert tab.value(f"{law}.querySelectorAll('path.yerror').length") == 12
    assert tab.problems == []
