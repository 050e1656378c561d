"use strict";
// Numbers, as growlm.study.numbers writes them but for parts of a second.
const trimmed = (value) => String(parseFloat(value.toPrecision(3)));
const write = {
  flops: (v) => v.toExponential(2).replace("e+", "e"),
  count: (v) => {
    const unit = [
      [1e12, "T"],
      [1e9, "B"],
      [1e6, "M"],
      [1e3, "K"],
    ].find(([size]) => Math.abs(v) >= 0.9995 * size);
    return unit ? trimmed(v / unit[0]) + unit[1] : trimmed(v);
  },
  seconds: (v) => {
    const s = Math.round(v);
    for (const [size, unit, part, small] of [
      [86400, "d", 3600, "h"],
      [3600, "h", 60, "m"],
      [60, "m", 1, "s"],
    ]) {
      const rest = Math.floor((s % size) / part);
      if (s >= size) return Math.floor(s / size) + unit + (rest ? ` ${String(rest).padStart(2, "0")}${small}` : "");
    }
    return trimmed(v) + "s";
  },
  loss: (v) => v.toFixed(4),
  percent: (v) => `${v > 0 ? "+" : ""}${trimmed(100 * v)}%`,
  number: (v) =>
    v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5)
      ? v.toExponential(2).replace("e+", "e")
      : String(parseFloat(v.toPrecision(4))),
};
const tickText = (v, kind, step) => {
  if (kind === "flops")
    return v === 0
      ? "0"
      : trimmed(v / 10 ** Math.floor(Math.log10(Math.abs(v)) + 1e-9)) +
          "e" +
          Math.floor(Math.log10(Math.abs(v)) + 1e-9);
  if (kind === "loss") return v.toFixed(Math.max(0, Math.min(6, Math.ceil(-Math.log10(step) - 1e-9))));
  return write[kind](v);
};

const CLOCK = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 432000];
const niceStep = (span, most, kind) => {
  const raw = span / most;
  if (kind === "seconds") {
    const found = CLOCK.find((step) => step >= raw);
    if (found && raw > 0.2) return found;
  }
  const power = 10 ** Math.floor(Math.log10(raw));
  return power * [1, 2, 5, 10].find((step) => step * power >= raw * 0.999);
};
// Places of ticks between two ends, and the smallest step between them.
const ticks = (low, high, log, most, kind) => {
  if (log) {
    for (const digits of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1, 3], [1]]) {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
        for (const digit of digits) {
          const v = digit * 10 ** power;
          if (v >= low && v <= high) found.push(v);
        }
      if (found.length > most && digits.length > 1) continue;
      if (found.length >= 3 || high / low > 20) {
        const every = Math.ceil(found.length / most);
        return [found.filter((_, number) => number % every === 0), found[0]];
      }
      break;
    }
  }
  const step = niceStep(high - low, most, kind),
    found = [];
  for (let number = Math.ceil(low / step - 1e-9); number * step <= high + 1e-9 * step; number++)
    found.push(number * step);
  return [found, step];
};
