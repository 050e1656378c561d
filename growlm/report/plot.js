// A figure as SVG: what is seen of it, over the x axis that was chosen. `view` are the ends of both axes, in their units.
const NS = "http://www.w3.org/2000/svg";
const DASHES = ["", "7 4", "9 3 2 3", "2 3"];
const HEIGHT = 400;
const FEW = 25; // points of a curve that are shown each
const NEAR = 64; // pixels from the pointer to what is told of

const el = (parent, tag, attributes, text) => {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return parent.appendChild(made);
};
const html = (parent, tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return parent.appendChild(made);
};
const button = (parent, text, title, act) => {
  const made = html(parent, "button", "", text);
  made.type = "button";
  made.title = title;
  made.addEventListener("click", act);
  return made;
};
const short = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

class Plot {
  constructor(figure, place, title) {
    this.figure = figure;
    this.place = place;
    this.axis = figure.x[0];
    this.logs = { x: this.axis.log, y: figure.y.log };
    this.hidden = new Set(); // labels
    this.hot = null; // the label that stands out
    this.svg = el(place, "svg", { role: "img", "aria-label": title });
  }

  extent() {
    const view = { x: [Infinity, -Infinity], y: [Infinity, -Infinity] };
    for (const one of this.shown()) {
      const [xs, ys] = this.columns(one),
        places = xs.map((x, i) => [x, ys[i]]);
      for (const mark of one.marks)
        for (const x of [mark.x[this.axis.key], ...(mark.span || [])]) places.push([x ?? null, mark.y]);
      for (const [x, y] of places) {
        if (x === null || y === null || (this.logs.x && x <= 0) || (this.logs.y && y <= 0)) continue;
        view.x = [Math.min(view.x[0], x), Math.max(view.x[1], x)];
        view.y = [Math.min(view.y[0], y), Math.max(view.y[1], y)];
      }
    }
    if (this.figure.y.names.length) view.y = [-0.6, this.figure.y.names.length - 0.4];
    for (const way of ["x", "y"]) {
      let [low, high] = view[way];
      if (!(low < high))
        [low, high] =
          low === high ? [low - (Math.abs(low) || 1) * 0.05, high + (Math.abs(high) || 1) * 0.05] : [0, 1];
      const pad = this.logs[way] && low > 0 ? (high / low) ** 0.02 : 0.02 * (high - low);
      view[way] = this.logs[way] && low > 0 ? [low / pad, high * pad] : [low === 0 ? 0 : low - pad, high + pad];
    }
    return view;
  }

  // The ends of an axis as they can be shown: a logarithm has no place for 0.
  ends(way) {
    const [low, high] = this.view[way];
    if (!this.logs[way] || low > 0) return [low, high];
    let least = Infinity;
    for (const one of this.figure.series)
      for (const value of this.columns(one)[way === "x" ? 0 : 1]) if (value > 0) least = Math.min(least, value);
    return high > least ? [least, high] : [least, least * 10];
  }

  scales() {
    const { box } = this,
      scales = {};
    for (const [way, from, length] of [
      ["x", box.left, box.width],
      ["y", box.top + box.height, -box.height],
    ]) {
      const [low, high] = this.ends(way),
        log = this.logs[way];
      const t = log ? Math.log : (v) => v,
        back = log ? Math.exp : (v) => v;
      scales[way] = {
        at: (v) => from + ((t(v) - t(low)) / (t(high) - t(low))) * length,
        to: (pixel) => back(t(low) + ((pixel - from) / length) * (t(high) - t(low))),
        fits: (v) => v !== null && (!log || v > 0),
        low,
        high,
        log,
      };
    }
    return scales;
  }

  shown() {
    return this.figure.series.filter((one) => !this.hidden.has(one.label));
  }

  columns(one) {
    return [one.columns[this.axis.key], one.columns[this.figure.y.key]];
  }

  colour(one) {
    const style = getComputedStyle(this.place);
    return style.getPropertyValue(one.colour === null ? "--baseline" : `--run${one.colour % 6}`).trim();
  }

  render() {
    const width = this.place.clientWidth,
      style = getComputedStyle(this.place);
    if (!width || !this.view) return;
    const named = this.shown().filter((one) => one.style === "line");
    const wide =
      width >= 680 &&
      named.length > 0 &&
      named.length <= 16 &&
      named.length === this.shown().filter((one) => one.style !== "thin").length;
    const { names } = this.figure.y;
    const height = names.length ? 100 + 34 * names.length : width < 500 ? 320 : HEIGHT;
    const up = names.length ? this.named(names) : this.numbered(height);
    const left = 36 + 7 * Math.max(3, ...up[2].map((text) => text.length));
    this.box = { left, top: 40, width: width - left - (wide ? 192 : 14), height: height - 86 };
    this.scale = this.scales();
    const { svg, box, scale } = this,
      ink = style.getPropertyValue("--ink").trim();
    const quiet = style.getPropertyValue("--quiet").trim(),
      line = style.getPropertyValue("--grid").trim();
    svg.replaceChildren();
    for (const [name, value] of Object.entries({
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      "font-family": "system-ui, sans-serif",
      "font-size": 12,
    }))
      svg.setAttribute(name, value);
    const clip = el(el(svg, "defs", {}), "clipPath", { id: `clip-${this.figure.name}` });
    el(clip, "rect", { x: box.left, y: box.top, width: box.width, height: box.height });
    this.grid(up, quiet, line, ink);
    const inside = el(svg, "g", { "clip-path": `url(#clip-${this.figure.name})` });
    this.points = [];
    for (const thin of [true, false])
      for (const one of this.shown()) if ((one.style === "thin") === thin) this.curve(inside, one);
    this.marks(inside, ink, style.getPropertyValue("--paper").trim());
    if (wide) this.names(named, ink);
    this.overlay = el(svg, "g", { "pointer-events": "none" });
  }

  // Places on the y axis and what stands there.
  numbered(height) {
    const { kind } = this.figure.y;
    const [found, step] = ticks(...this.ends("y"), this.logs.y, Math.floor((height - 86) / 44), kind);
    return [found, step, found.map((v) => tickText(v, kind, step))];
  }

  named(names) {
    const [low, high] = this.view.y,
      found = names.map((_, number) => number).filter((number) => number >= low && number <= high);
    return [found, 1, found.map((number) => short(names[number], 20))];
  }

  grid(up, quiet, line, ink) {
    const { svg, box, scale, figure } = this;
    const across = ticks(
      scale.x.low,
      scale.x.high,
      this.logs.x,
      Math.max(3, Math.floor(box.width / 74)),
      this.axis.kind,
    );
    up[0].forEach((v, number) => {
      const y = scale.y.at(v),
        zero = figure.y.signed && Math.abs(v) < 1e-9;
      el(svg, "line", { x1: box.left, x2: box.left + box.width, y1: y, y2: y, stroke: zero ? ink : line });
      el(
        svg,
        "text",
        { x: box.left - 8, y: y + 4, "text-anchor": "end", fill: quiet, class: "tick-y" },
        up[2][number],
      );
    });
    for (const v of across[0]) {
      const x = scale.x.at(v);
      const zero = this.axis.signed && Math.abs(v) < 1e-9;
      el(svg, "line", { x1: x, x2: x, y1: box.top, y2: box.top + box.height, stroke: zero ? ink : line });
      const anchor =
        x > box.left + box.width - 22 && box.left + box.width > this.place.clientWidth - 30 ? "end" : "middle";
      el(
        svg,
        "text",
        { x, y: box.top + box.height + 18, "text-anchor": anchor, fill: quiet, class: "tick-x" },
        tickText(v, this.axis.kind, across[1]),
      );
    }
    el(svg, "path", {
      d: `M${box.left} ${box.top}V${box.top + box.height}H${box.left + box.width}`,
      stroke: quiet,
      fill: "none",
    });
    el(
      svg,
      "text",
      {
        x: box.left + box.width / 2,
        y: box.top + box.height + 38,
        "text-anchor": "middle",
        fill: ink,
        class: "label-x",
      },
      this.axis.label + (this.logs.x ? ", log" : ""),
    );
    const middle = box.top + box.height / 2;
    el(
      svg,
      "text",
      {
        x: 13,
        y: middle,
        "text-anchor": "middle",
        fill: ink,
        class: "label-y",
        transform: `rotate(-90 13 ${middle})`,
      },
      figure.y.label + (this.logs.y ? ", log" : ""),
    );
  }

  curve(place, one) {
    const [xs, ys] = this.columns(one),
      { x, y } = this.scale,
      colour = this.colour(one);
    const faded = this.hot && this.hot !== one.label ? 0.15 : one.style === "thin" ? 0.5 : 1;
    let path = "";
    xs.forEach((value, i) => {
      if (!x.fits(value) || !y.fits(ys[i])) return;
      const [px, py] = [x.at(value), y.at(ys[i])];
      if (one.style !== "fit" || one.marks.length === 0) this.points.push({ one, i, px, py });
      if (one.style === "points") {
        el(place, "circle", { cx: px, cy: py, r: 4, fill: colour, opacity: faded, class: "point" });
        if (one.columns.low) this.error(place, px, one.columns.low[i], one.columns.high[i], colour, faded);
      } else path += `${path ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`;
      if (one.style === "line" && xs.length <= FEW)
        el(place, "circle", { cx: px, cy: py, r: 3, fill: colour, opacity: faded, class: "dot" });
    });
    if (one.style === "points") return;
    const thick =
      { thin: 1, fit: 1.5, line: one.dash === 1 ? 1.9 : 2.3 }[one.style] + (this.hot === one.label ? 0.6 : 0);
    el(place, "path", {
      d: path || "M0 0",
      fill: "none",
      stroke: colour,
      "stroke-width": thick,
      "stroke-dasharray": DASHES[one.dash],
      "stroke-linejoin": "round",
      opacity: faded,
      class: "curve",
      "data-name": one.name,
    });
  }

  error(place, px, low, high, colour, opacity) {
    const { y } = this.scale;
    if (y.fits(low) && y.fits(high))
      el(place, "path", {
        d: `M${px - 4} ${y.at(low)}h8M${px} ${y.at(low)}V${y.at(high)}M${px - 4} ${y.at(high)}h8`,
        stroke: colour,
        "stroke-width": 1.5,
        fill: "none",
        opacity,
      });
  }

  marks(place, ink, paper) {
    const { x, y } = this.scale,
      { box } = this,
      said = [];
    for (const one of this.shown())
      for (const mark of one.marks) {
        const value = mark.x[this.axis.key];
        if (value === undefined || !x.fits(value) || !y.fits(mark.y)) continue;
        const [px, py] = [x.at(value), y.at(mark.y)],
          colour = this.colour(one);
        const opacity = this.hot && this.hot !== one.label ? 0.15 : 1;
        const group = el(place, "g", { opacity, class: mark.kind });
        if (mark.kind === "growth") {
          el(group, "line", {
            x1: px,
            x2: px,
            y1: box.top,
            y2: Math.max(py, box.top + 24),
            stroke: colour,
            "stroke-width": 1.4,
            "stroke-dasharray": "2 3",
          });
          if (px >= box.left && px <= box.left + box.width) this.say(mark.text, px, said, ink);
        } else if (mark.span) {
          el(group, "line", {
            x1: x.at(mark.span[0]),
            x2: x.at(mark.span[1]),
            y1: py,
            y2: py,
            stroke: colour,
            "stroke-width": 4,
            opacity: 0.5,
          });
        }
        el(group, "path", {
          d: `M${px} ${py - 6}l6 6l-6 6l-6 -6z`,
          fill: colour,
          stroke: paper,
          "stroke-width": 1.5,
        });
        this.points.push({ one, mark, px, py });
      }
  }

  // What a growth changed, above its tick; once per place, and only where there is room; the pointer tells all of it.
  say(whole, px, said, ink) {
    const { box, svg } = this,
      edge = this.place.clientWidth;
    const text = short(whole, Math.floor((edge - box.left) / 7)),
      room = 6.4 * text.length;
    const start = clamp(px - 4, box.left, edge - room - 4);
    if (said.some((other) => other.text === text && Math.abs(other.px - px) < 160)) return;
    const row = [0, 1].find(
      (n) => !said.some((other) => other.row === n && start < other.end && other.start < start + room + 10),
    );
    if (row === undefined) return;
    said.push({ text, px, row, start, end: start + room + 10 });
    el(svg, "text", { x: start, y: box.top - 6 - 15 * row, fill: ink }, text);
  }

  // Name and value of every curve at its last point that is seen, to the right and without overlap.
  names(lines, ink) {
    const { box, scale, svg } = this,
      ends = [];
    for (const one of lines) {
      const seen = this.points.filter(
        (point) => point.one === one && !point.mark && point.px < box.left + box.width + 1,
      );
      const last = seen[seen.length - 1];
      if (!last || last.px < box.left) continue;
      const py = clamp(last.py, box.top, box.top + box.height);
      ends.push({ one, value: this.columns(one)[1][last.i], px: last.px, py });
    }
    ends.sort((a, b) => a.py - b.py);
    const gap = Math.min(16, (box.height + 30) / Math.max(ends.length, 1));
    ends.forEach((end, n) => {
      end.at = n ? Math.max(end.py, ends[n - 1].at + gap) : end.py;
    });
    const over = ends.length ? Math.max(0, ends[ends.length - 1].at - box.top - box.height) : 0;
    for (let n = ends.length - 1, limit = box.top + box.height; over && n >= 0; n--) {
      ends[n].at = Math.min(ends[n].at, limit);
      limit = ends[n].at - gap;
    }
    for (const end of ends) {
      const name = end.one.label.replace(/ \([^()]*\)$/, ""),
        x = box.left + box.width,
        colour = this.colour(end.one);
      const opacity = this.hot && this.hot !== end.one.label ? 0.25 : 1;
      el(svg, "path", {
        d: `M${end.px} ${end.py}L${x + 2} ${end.py}L${x + 10} ${end.at}`,
        stroke: colour,
        fill: "none",
        "stroke-dasharray": "2 2",
        opacity: opacity * 0.7,
      });
      el(
        svg,
        "text",
        { x: x + 13, y: end.at + 4, fill: ink, opacity, class: "end" },
        `${short(name, 17)} ${end.value.toFixed(3)}`,
      );
    }
  }
}
