// A plot that can be worked with: axes to choose, zoom, hover, a legend that hides, and a picture to take home.
class Chart extends Plot {
  constructor(root) {
    const figure = JSON.parse(root.querySelector("script").textContent);
    super(figure, root.querySelector(".plot"), root.querySelector("figcaption").textContent);
    this.labels = [...new Map(figure.series.map((one) => [one.label, one])).values()];
    this.tools(root.querySelector(".tools"), root.querySelector("a.csv"));
    this.legend(root.querySelector(".legend"));
    this.tip = html(this.place, "div", "tip");
    this.tip.hidden = true;
    this.listen();
    new ResizeObserver(() => this.render()).observe(this.place);
    this.reset();
  }

  render() {
    super.render();
    if (this.overlay) this.sync();
  }

  tools(place, csv) {
    if (this.figure.x.length > 1) {
      const group = html(place, "span", "group");
      this.choices = this.figure.x.map((axis) => {
        const name = { flops: "FLOPs", seconds: "time" }[axis.key] || axis.key;
        const made = button(group, name, axis.label, () => this.choose(axis));
        made.dataset.axis = axis.key;
        return made;
      });
    }
    const scales = html(place, "span", "group");
    this.switches = {};
    for (const [way, axis] of [
      ["x", this.axis],
      ["y", this.figure.y],
    ]) {
      if (axis.kind === "name" || axis.signed) continue; // negative ones have no logarithm
      this.switches[way] = button(scales, `log ${way}`, `logarithmic ${way} axis`, () => {
        this.logs[way] = !this.logs[way];
        this.render();
      });
      this.switches[way].dataset.log = way;
    }
    const views = html(place, "span", "group");
    button(views, "all", "everything there is", () => {
      this.view = this.extent();
      this.render();
    }).dataset.view = "all";
    button(views, "reset", "as at first; a double click does the same", () => this.reset()).dataset.view = "reset";
    const files = html(place, "span", "group");
    files.appendChild(csv);
    button(files, "PNG", "what is seen now, as a picture", () => this.save());
  }

  legend(place) {
    this.entries = this.labels.map((one) => {
      const made = button(place, "", "a click hides it, a click with Shift shows it alone", (event) => {
        if (event.shiftKey) {
          const alone = this.labels.every((other) => this.hidden.has(other.label) === (other !== one));
          this.hidden = new Set(
            alone ? [] : this.labels.filter((other) => other !== one).map((other) => other.label),
          );
        } else if (!this.hidden.delete(one.label)) this.hidden.add(one.label);
        this.hot = null;
        this.render();
      });
      made.dataset.label = one.label;
      made.swatch = el(made, "svg", { width: 26, height: 10, "aria-hidden": "true" });
      html(made, "span", "", one.label);
      const light = (label) => {
        if (this.hot !== label) {
          this.hot = label;
          this.render();
        }
      };
      made.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && light(one.label));
      made.addEventListener("pointerleave", () => light(null));
      return made;
    });
  }

  choose(axis) {
    this.axis = axis;
    this.logs.x = axis.log;
    this.reset();
  }

  reset() {
    const view = this.figure.views[this.axis.key];
    this.view = view ? { x: [view[0], view[1]], y: [view[2], view[3]] } : this.extent();
    this.logs = { x: this.axis.log, y: this.figure.y.log };
    this.render();
  }

  sync() {
    for (const [way, made] of Object.entries(this.switches)) made.setAttribute("aria-pressed", this.logs[way]);
    (this.choices || []).forEach((made) => made.setAttribute("aria-pressed", made.dataset.axis === this.axis.key));
    this.entries.forEach((made, n) => {
      const one = this.labels[n],
        colour = this.colour(one);
      made.setAttribute("aria-pressed", !this.hidden.has(one.label));
      made.swatch.replaceChildren();
      if (one.style === "points") el(made.swatch, "circle", { cx: 13, cy: 5, r: 4, fill: colour });
      else
        el(made.swatch, "line", {
          x1: 0,
          x2: 26,
          y1: 5,
          y2: 5,
          stroke: colour,
          "stroke-width": 2.5,
          "stroke-dasharray": DASHES[one.dash],
        });
    });
  }

  hover(px, py) {
    const { box } = this;
    let best = null,
      least = NEAR ** 2;
    for (const point of this.points) {
      if (
        point.px < box.left - 1 ||
        point.px > box.left + box.width + 1 ||
        point.py < box.top - 1 ||
        point.py > box.top + box.height + 1
      )
        continue;
      const far = (point.px - px) ** 2 + (point.py - py) ** 2 - (point.mark ? 60 : 0);
      if (far < least) {
        least = far;
        best = point;
      }
    }
    this.overlay.replaceChildren();
    this.tip.hidden = !best;
    if (!best) return;
    const colour = this.colour(best.one);
    el(this.overlay, "path", {
      d: `M${best.px} ${box.top}V${box.top + box.height}M${box.left} ${best.py}H${box.left + box.width}`,
      stroke: colour,
      opacity: 0.35,
    });
    el(this.overlay, "circle", { cx: best.px, cy: best.py, r: 5, fill: colour });
    this.tip.replaceChildren();
    html(this.tip, "b", "", best.one.name).style.color = colour;
    for (const [label, text] of this.facts(best)) html(this.tip, "div", "", `${label} ${text}`);
    const wide = this.tip.offsetWidth,
      high = this.tip.offsetHeight;
    const left = best.px + 14 + wide > this.place.clientWidth ? best.px - 14 - wide : best.px + 14;
    this.tip.style.left = `${Math.max(0, left)}px`;
    this.tip.style.top = `${clamp(best.py - high - 12, 0, box.top + box.height - high)}px`;
  }

  facts({ one, i, mark }) {
    if (mark && mark.kind === "estimate") return [["", mark.text]];
    const named = (axis) => ({ flops: "FLOPs", seconds: "time" })[axis.key] || axis.key.replace("_", " ");
    const y = this.figure.y,
      value = mark ? mark.y : one.columns[y.key][i];
    const facts = [[y.label.replace(/ \(.*/, ""), write[y.kind](value)]];
    if (!mark && one.columns.low)
      facts.push(["95 %", `${write[y.kind](one.columns.low[i])} to ${write[y.kind](one.columns.high[i])}`]);
    for (const axis of this.figure.x) {
      const at = mark ? mark.x[axis.key] : one.columns[axis.key][i];
      if (at !== undefined && at !== null) facts.push([named(axis), write[axis.kind](at)]);
    }
    if (mark) facts.push([mark.kind === "growth" ? "grown:" : "", mark.text]);
    return facts;
  }

  // New ends of both axes, in pixels of the present view.
  look(x0, x1, y0, y1) {
    const { x, y } = this.scale,
      ends = { x: [x.to(x0), x.to(x1)], y: [y.to(y1), y.to(y0)] };
    for (const way of ["x", "y"]) {
      const [low, high] = ends[way];
      if (!Number.isFinite(low) || !Number.isFinite(high) || !(high - low > 1e-9 * Math.abs(high))) return;
    }
    this.view = ends;
    this.tip.hidden = true;
    this.render();
  }

  listen() {
    const { svg } = this,
      fingers = new Map();
    let drag = null,
      tapped = 0;
    const place = (event) => {
      const box = svg.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const both = () => [...fingers.values()];
    const spread = ([a, b]) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2, Math.hypot(a[0] - b[0], a[1] - b[1])];

    svg.addEventListener("pointerdown", (event) => {
      const at = place(event);
      if (event.pointerType === "mouse") {
        if (event.button !== 0) return;
        drag = { from: at, pan: event.shiftKey };
        svg.setPointerCapture(event.pointerId);
        return;
      }
      fingers.set(event.pointerId, at);
      if (fingers.size === 1) {
        if (event.timeStamp - tapped < 300) this.reset();
        tapped = event.timeStamp;
        this.hover(...at);
      }
    });
    svg.addEventListener("pointermove", (event) => {
      const at = place(event);
      if (fingers.has(event.pointerId)) {
        const before = both();
        fingers.set(event.pointerId, at);
        if (fingers.size === 1) this.hover(...at);
        if (fingers.size === 2) this.pinch(spread(before), spread(both()));
      } else if (drag && drag.pan) {
        const { box } = this,
          dx = drag.from[0] - at[0],
          dy = drag.from[1] - at[1];
        this.look(box.left + dx, box.left + box.width + dx, box.top + dy, box.top + box.height + dy);
        drag.from = at;
      } else if (drag) this.rectangle(drag.from, at);
      else if (event.pointerType === "mouse") this.hover(...at);
    });
    const end = (event) => {
      fingers.delete(event.pointerId);
      if (drag && !drag.pan) this.zoom(drag.from, place(event));
      drag = null;
    };
    svg.addEventListener("pointerup", end);
    svg.addEventListener("pointercancel", (event) => {
      fingers.delete(event.pointerId);
      drag = null;
      this.overlay.replaceChildren();
    });
    svg.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse" && !drag) {
        this.tip.hidden = true;
        this.overlay.replaceChildren();
      }
    });
    svg.addEventListener("dblclick", () => this.reset());
    svg.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey && !event.metaKey) return; // a page must scroll; pinching a touchpad comes with ctrlKey
        event.preventDefault();
        const [x, y] = place(event);
        this.pinch([x, y, Math.exp(clamp(event.deltaY, -60, 60) / 200)], [x, y, 1]);
      },
      { passive: false },
    );
    svg.addEventListener(
      "touchmove",
      (event) => {
        if (event.touches.length > 1) event.preventDefault();
      },
      { passive: false },
    );
  }

  pinch([x0, y0, far0], [x1, y1, far1]) {
    const { box } = this,
      scale = clamp(far0 / Math.max(far1, 1), 0.5, 2);
    this.look(
      x0 - (x1 - box.left) * scale,
      x0 + (box.left + box.width - x1) * scale,
      y0 - (y1 - box.top) * scale,
      y0 + (box.top + box.height - y1) * scale,
    );
  }

  // A rectangle dragged too flat or too narrow is a stretch of one axis.
  corners(from, to) {
    const { box } = this;
    let [x0, x1] = [from[0], to[0]].sort((a, b) => a - b),
      [y0, y1] = [from[1], to[1]].sort((a, b) => a - b);
    if (x1 - x0 < 8 && y1 - y0 < 8) return null;
    if (x1 - x0 < 8) [x0, x1] = [box.left, box.left + box.width];
    if (y1 - y0 < 8) [y0, y1] = [box.top, box.top + box.height];
    return [
      clamp(x0, box.left, box.left + box.width),
      clamp(x1, box.left, box.left + box.width),
      clamp(y0, box.top, box.top + box.height),
      clamp(y1, box.top, box.top + box.height),
    ];
  }

  rectangle(from, to) {
    const corners = this.corners(from, to);
    this.overlay.replaceChildren();
    this.tip.hidden = true;
    if (!corners) return;
    const [x0, x1, y0, y1] = corners,
      mark = getComputedStyle(this.place).getPropertyValue("--mark").trim();
    el(this.overlay, "rect", {
      x: x0,
      y: y0,
      width: x1 - x0,
      height: y1 - y0,
      fill: mark,
      "fill-opacity": 0.15,
      stroke: mark,
    });
  }

  zoom(from, to) {
    const corners = this.corners(from, to);
    if (corners) this.look(...corners);
  }

  // The chart as it is seen now, with its legend below, in twice its size.
  async save() {
    const style = getComputedStyle(this.place),
      paper = style.getPropertyValue("--paper").trim();
    this.overlay.replaceChildren();
    const width = Number(this.svg.getAttribute("width")),
      height = Number(this.svg.getAttribute("height"));
    const shown = this.labels.filter((one) => !this.hidden.has(one.label));
    const copy = this.svg.cloneNode(true),
      columns = Math.max(1, Math.floor(width / 210));
    const high = height + 18 * Math.ceil(shown.length / columns) + 10;
    copy.setAttribute("xmlns", NS);
    copy.setAttribute("height", high);
    copy.setAttribute("viewBox", `0 0 ${width} ${high}`);
    copy.prepend(el(copy, "rect", { width, height: high, fill: paper }));
    shown.forEach((one, n) => {
      const x = 14 + 210 * (n % columns),
        y = height + 14 + 18 * Math.floor(n / columns);
      el(copy, "line", {
        x1: x,
        x2: x + 26,
        y1: y - 4,
        y2: y - 4,
        stroke: this.colour(one),
        "stroke-width": 2.5,
        "stroke-dasharray": DASHES[one.dash],
      });
      el(copy, "text", { x: x + 32, y, fill: style.getPropertyValue("--ink").trim() }, one.label);
    });
    const image = new Image();
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(new XMLSerializer().serializeToString(copy));
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [2 * width, 2 * high];
    canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * high);
    const link = document.createElement("a");
    link.download = `${this.figure.name}_${this.axis.key}.png`;
    link.href = canvas.toDataURL("image/png");
    link.click();
  }
}
