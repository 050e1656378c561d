"""The report in a headless Chromium: no errors, no network, and charts that do what their buttons say."""

import json

import pytest
from browser import browser, find_browser
from studies import write_seeds
from test_fit import timing_sweep

from growlm.report.report import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium here (apt-get install chromium)"),
]

RUNS = [{"scratch": 1.0, "grown": factor, "control": 0.9} for factor in (0.70, 0.72)]
LOSS = "document.querySelector('#chart-loss')"
PHONE, LAPTOP = {"width": 390, "height": 844, "phone": True}, {"width": 1440, "height": 900}
WHERE = (
    "(([x, y, w, h]) => [x + {0} * w, y + {1} * h])((r => [r.x, r.y, r.width, r.height])({2}.getBoundingClientRect()))"
)
# A place on a curve, as the screen counts.
ON_CURVE = """(curve => {{
    const at = curve.getPointAtLength(0.7 * curve.getTotalLength()).matrixTransform(curve.getScreenCTM());
    return [at.x, at.y];
}})({0})"""


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


def curves(tab, chart=LOSS):
    return tab.value(f"[...{chart}.querySelectorAll('path.curve')].map(c => c.dataset.name)")


def click(tab, selector, chart=LOSS):
    tab.value(f"{chart}.querySelector('{selector}').click()")


def ticks(tab, way="x"):
    return tab.value(f"[...{LOSS}.querySelectorAll('.tick-{way}')].map(t => t.textContent)")


def place(tab, across, down):
    """A point in the plot, in parts of its width and height; it is scrolled there."""
    tab.value(f"{LOSS}.querySelector('.plot').scrollIntoView({{block: 'center'}})")
    return tab.value(WHERE.format(across, down, f"{LOSS}.querySelector('.plot svg')"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_the_page_opens_without_errors_or_network(tab, page, device, scheme):
    tab.open(page, scheme=scheme, **device)
    assert tab.requests == [page.resolve().as_uri()]
    assert tab.problems == []
    assert tab.value("document.documentElement.scrollWidth") <= device["width"]
    assert tab.value("document.title") == "Three runs & <two> seeds"
    ground = tab.value("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]


def test_every_figure_has_its_curves(laptop):
    assert sorted(curves(laptop)) == sorted(
        name
        for run in ("scratch", "grown", "control")
        for name in (f"{run}, seed 0", f"{run}, seed 1", f"{run}, mean of 2 seeds")
    )
    assert len(curves(laptop, "document.querySelector('#chart-benchmark_piqa_acc')")) == 9
    assert laptop.value("document.querySelectorAll('figure.chart').length") == 3
    speedup = "document.querySelector('#chart-speedup')"
    assert laptop.value(f"{speedup}.querySelectorAll('g.estimate').length") == 3  # two over scratch, one over control
    names = laptop.value(f"[...{speedup}.querySelectorAll('.tick-y')].map(t => t.textContent)")
    assert names == ["control", "grown"] and laptop.value(f"{speedup}.querySelector('[data-log]')") is None
    assert laptop.value(f"{LOSS}.querySelectorAll('g.growth').length") == 1
    assert all(laptop.value(f"[...{LOSS}.querySelectorAll('path.curve')].map(c => c.getAttribute('d').length > 100)"))


def test_a_click_in_the_legend_hides_a_run_and_another_shows_it(laptop):
    box = f"{LOSS}.querySelector('[data-label=\"grown (grown)\"]')"
    laptop.value(f"{box}.scrollIntoView({{block: 'center'}})")
    at = laptop.value(WHERE.format(0.5, 0.5, box))
    for expected in (6, 9):
        laptop.mouse("mousePressed", *at)
        laptop.mouse("mouseReleased", *at)
        assert len(curves(laptop)) == expected
        assert laptop.value(f"{box}.getAttribute('aria-pressed')") == str(expected == 9).lower()
    laptop.value(f"{box}.dispatchEvent(new MouseEvent('click', {{shiftKey: true}}))")
    assert {name.split(",")[0] for name in curves(laptop)} == {"grown"}


def test_the_x_axis_can_be_chosen_and_both_be_logarithmic(laptop):
    label = f"{LOSS}.querySelector('.label-x').textContent"
    assert laptop.value(label) == "training compute, all stages (FLOPs), log" and "2e9" in ticks(laptop)
    click(laptop, "[data-axis=tokens]")
    assert laptop.value(label) == "tokens, all stages" and "1M" in ticks(laptop)
    click(laptop, "[data-log=x]")
    assert laptop.value(label) == "tokens, all stages, log" and len(ticks(laptop)) >= 3
    click(laptop, "[data-axis=seconds]")
    assert laptop.value(label) == "training time, all stages" and any("h" in text for text in ticks(laptop))
    click(laptop, "[data-log=y]")
    assert laptop.value(f"{LOSS}.querySelector('.label-y').textContent").endswith(", log")
    assert laptop.value(f"{LOSS}.querySelector('[data-log=y]').getAttribute('aria-pressed')") == "true"


def test_a_dragged_rectangle_is_zoomed_into_and_a_double_click_goes_back(laptop):
    before = ticks(laptop), ticks(laptop, "y")
    start, end = place(laptop, 0.4, 0.4), place(laptop, 0.6, 0.7)
    laptop.mouse("mousePressed", *start)
    laptop.mouse("mouseMoved", *end)
    assert laptop.value(f"{LOSS}.querySelectorAll('.plot svg > g rect').length") == 1
    laptop.mouse("mouseReleased", *end)
    assert ticks(laptop) != before[0] and ticks(laptop, "y") != before[1]
    laptop.mouse("mousePressed", *start)
    laptop.mouse("mouseReleased", *start)
    laptop.mouse("mousePressed", *start, clickCount=2)
    laptop.mouse("mouseReleased", *start, clickCount=2)
    assert (ticks(laptop), ticks(laptop, "y")) == before


def test_the_wheel_zooms_with_control_and_scrolls_without(laptop):
    before, at = ticks(laptop), place(laptop, 0.5, 0.5)
    laptop.mouse("mouseWheel", *at, deltaX=0, deltaY=-50, button="none")
    assert ticks(laptop) == before
    at = place(laptop, 0.5, 0.5)
    laptop.mouse("mouseWheel", *at, deltaX=0, deltaY=-50, button="none", modifiers=2)
    assert ticks(laptop) != before
    click(laptop, "[data-view=all]")
    assert "4.5" in ticks(laptop, "y")  # where the curves begin
    click(laptop, "[data-view=reset]")
    assert ticks(laptop) == before


def test_the_nearest_point_says_what_it_is(laptop):
    tip = f"{LOSS}.querySelector('.tip')"
    assert laptop.value(f"{tip}.hidden")
    place(laptop, 0.5, 0.5)
    curve = f"{LOSS}.querySelector('path.curve[data-name=\"scratch, mean of 2 seeds\"]')"
    laptop.mouse("mouseMoved", *laptop.value(ON_CURVE.format(curve)), button="none")
    text = laptop.value(f"{tip}.innerText")
    for part in ("validation loss 2.", "FLOPs", "tokens", "time"):
        assert part in text
    assert laptop.value(f"{tip}.querySelector('b').textContent") in curves(laptop)
    laptop.mouse("mouseMoved", 5, 5, button="none")
    assert laptop.value(f"{tip}.hidden")


def test_two_fingers_zoom_on_a_phone(tab, page):
    tab.open(page, **PHONE)
    before, left, right = ticks(tab), place(tab, 0.5, 0.5), place(tab, 0.6, 0.5)
    tab.touch("touchStart", left, right)
    for step in range(1, 6):
        tab.touch("touchMove", (left[0] - 12 * step, left[1]), (right[0] + 12 * step, right[1]))
    tab.touch("touchEnd")
    assert ticks(tab) != before
    assert tab.problems == []


def test_the_switch_overrules_the_device(laptop):
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = f"{LOSS}.querySelector('.label-x').getAttribute('fill')"
    seen = []
    for _ in range(3):
        seen.append((laptop.value("document.documentElement.dataset.theme"), laptop.value(ground), laptop.value(ink)))
        laptop.value("document.querySelector('#theme').click()")
    light, dark = ("rgb(255, 255, 255)", "#1c2024"), ("rgb(21, 24, 28)", "#e6e8ea")
    assert seen == [("auto", *light), ("light", *light), ("dark", *dark)]
    laptop.scheme("dark")
    assert (laptop.value(ground), laptop.value(ink)) == dark  # auto again


def test_the_picture_is_what_is_seen(laptop):
    click(laptop, "[data-axis=tokens]")
    laptop.value("""(HTMLAnchorElement.prototype.click = function () {
        if (this.download.endsWith(".png")) window.saved = [this.download, this.href];
    }, 0)""")
    laptop.value(f"[...{LOSS}.querySelectorAll('.tools button')].find(b => b.textContent === 'PNG').click()")
    laptop.value("new Promise(done => { const f = () => window.saved ? done() : setTimeout(f, 20); f(); })")
    name, link = laptop.value("window.saved")
    assert name == "loss_tokens.png" and link.startswith("data:image/png;base64,") and len(link) > 20_000


def test_laws_have_points_parabolas_and_minima(tab, tmp_path):
    timing_sweep(tmp_path, seeds=(0,))
    tab.open(write_report(tmp_path), **LAPTOP)
    valley, law = (f"document.querySelector('#chart-timing_{name}')" for name in ("valley", "law"))
    assert len(curves(tab, valley)) == 12 and len(curves(tab, law)) == 3
    assert tab.value(f"{valley}.querySelectorAll('circle.point').length") == 60
    assert tab.value(f"{valley}.querySelectorAll('g.minimum').length") == 12
    assert tab.problems == []
