// Elements, scales and line charts. Every text goes in as a text node: nothing of the data is ever markup.
const svgNamespace = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  for (const child of children) node.append(child);
  return node;
}
const make = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes, ...children) => fill(document.createElementNS(svgNamespace, tag), attributes, children);

// A policy's look: colour, mark and dash. Marks are hollow from the ninth policy on, so that sixteen differ in shape alone; later
// ones have their marks in other colours.
const marks = [
  r => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0z`,
  r => `M${-r * 0.9},${-r * 0.9}h${1.8 * r}v${1.8 * r}h${-1.8 * r}z`,
  r => `M0,${-1.2 * r}L${1.1 * r},${0.8 * r}H${-1.1 * r}z`,
  r => `M0,${-1.3 * r}L${1.3 * r},0L0,${1.3 * r}L${-1.3 * r},0z`,
  r => `M0,${1.2 * r}L${1.1 * r},${-0.8 * r}H${-1.1 * r}z`,
  r => { const a = r * 0.45, b = r * 1.25; return `M${-a},${-b}h${2 * a}v${b - a}h${b - a}v${2 * a}h${a - b}v${b - a}h${-2 * a}v${a - b}h${a - b}v${-2 * a}h${b - a}z`; },
  r => "M" + [...Array(10).keys()].map(i => {
    const q = i % 2 ? r * 0.6 : r * 1.4, a = Math.PI * (i / 5 - 0.5);
    return (q * Math.cos(a)).toFixed(2) + "," + (q * Math.sin(a)).toFixed(2);
  }).join("L") + "z",
  r => "M" + [...Array(6).keys()].map(i => {
    const a = Math.PI * i / 3;
    return (1.15 * r * Math.cos(a)).toFixed(2) + "," + (1.15 * r * Math.sin(a)).toFixed(2);
  }).join("L") + "z",
];
const dashes = ["", "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 4", "5 3 1 3 1 3"];
const lookOf = i => ({ color: `var(--c${(i + 3 * Math.floor(i / 16)) % 8})`, mark: marks[i % 8], dash: dashes[i % 8], hollow: Math.floor(i / 8) % 2 === 1 });
const markOf = (look, x, y, r) =>
  draw("path", { class: look.hollow ? "mark hollow" : "mark", d: look.mark(r), transform: `translate(${x.toFixed(1)},${y.toFixed(1)})` });

const isNumber = v => typeof v === "number" && isFinite(v);
function written(v, digits) {
  if (!isNumber(v)) return "–";
  if (digits !== undefined) return v.toFixed(digits);
  const size = Math.abs(v);
  return size === 0 ? "0" : size >= 100 ? v.toFixed(0) : size >= 10 ? String(+v.toFixed(1)) : String(+v.toPrecision(2));
}

// Round steps from 0 or the lowest value on; powers of ten with 2 and 5 where the scale is logarithmic.
function ticksOf(low, high, count, logarithmic) {
  if (logarithmic) {
    const all = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); ++e)
      for (const m of [1, 2, 5]) all.push(m * 10 ** e);
    const within = all.filter(t => t >= low * 0.999 && t <= high * 1.001);
    return within.length > count + 2 ? within.filter(t => Math.abs(Math.log10(t) % 1) < 1e-6) : within;
  }
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find(m => m * power >= raw * 0.999) * power;
  const ticks = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-6; t += step) ticks.push(+t.toPrecision(10));
  return ticks;
}

function rangeOf(spec) {
  const values = [];
  for (const s of spec.series) for (const p of s.points) values.push(p.y, p.low, p.high);
  if (spec.whole) values.push(spec.whole);
  const known = values.filter(isNumber), positive = known.filter(v => v > 0);
  if (spec.range) return { low: spec.range[0], high: spec.range[1], logarithmic: false };
  if (!known.length) return { low: 0, high: 1, logarithmic: false };
  const least = Math.min(...positive), most = Math.max(...known, 0);
  if (positive.length && most / least > 30 && spec.logarithmic) {
    const floor = Math.max(least, most / 1e4);
    return { low: floor / 1.15, high: most * 1.15, logarithmic: true };
  }
  const low = spec.fromZero || !spec.logarithmic ? 0 : Math.min(...known), span = most - low || 1;
  return { low: low - (low ? 0.08 * span : 0), high: most + 0.06 * span, logarithmic: false };
}

// spec: title, xTitle, yTitle, xMax, series of {look, name, points of {x, y, low, high, title}}, whole (the full cache's y), and,
// where wanted, xTicks, yTicks, range, fromZero or logarithmic (for values that spread widely).
function drawChart(node, spec) {
  const width = Math.max(220, node.clientWidth - 22), large = width > 420;
  const height = large ? Math.min(430, Math.max(280, width * 0.52)) : Math.max(170, width * 0.68);
  const left = 50, right = 12, top = 12, bottom = 38, plotWidth = width - left - right, plotHeight = height - top - bottom;
  const range = rangeOf(spec), level = v => range.logarithmic ? Math.log(Math.max(v, range.low)) : v;
  const x = v => left + v / spec.xMax * plotWidth;
  const y = v => top + plotHeight * (1 - (level(v) - level(range.low)) / (level(range.high) - level(range.low)));
  const inside = v => Math.min(top + plotHeight, Math.max(top, y(v)));
  const picture = draw("svg", { viewBox: `0 0 ${width} ${height.toFixed(0)}`, role: "img", "aria-label": spec.title });

  for (const t of spec.yTicks || ticksOf(range.low, range.high, 5, range.logarithmic)) {
    picture.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(t), y2: y(t) }),
                   draw("text", { x: left - 6, y: y(t) + 4, "text-anchor": "end" }, written(t)));
  }
  for (const t of spec.xTicks || ticksOf(0, spec.xMax, large ? 8 : 4)) {
    picture.append(draw("line", { class: "axis", x1: x(t), x2: x(t), y1: top + plotHeight, y2: top + plotHeight + 4 }),
                   draw("text", { x: x(t), y: top + plotHeight + 16, "text-anchor": "middle" }, written(t)));
  }
  picture.append(
      draw("line", { class: "axis", x1: left, x2: width - right, y1: top + plotHeight, y2: top + plotHeight }),
      draw("text", { x: left + plotWidth / 2, y: height - 5, "text-anchor": "middle" }, spec.xTitle),
      draw("text", { transform: `translate(10,${top + plotHeight / 2}) rotate(-90)`, "text-anchor": "middle" },
           spec.yTitle + (range.logarithmic ? " (log scale)" : "")));

  const beside = large ? 3 : 1.8, middle = (spec.series.length - 1) / 2;
  spec.series.forEach((s, i) => {
    const shift = (i - middle) * Math.min(beside, 36 / spec.series.length);
    const group = draw("g", { class: "series", style: `color:${s.look.color}`, "data-policy": s.name });
    const points = s.points.filter(p => isNumber(p.x) && isNumber(p.y)).sort((a, b) => a.x - b.x);
    const place = p => [x(p.x) + shift, inside(p.y)];
    for (const p of points)
      if (isNumber(p.low) && isNumber(p.high) && p.high > p.low) {
        group.append(draw("line", { class: "bar", x1: place(p)[0], x2: place(p)[0], y1: inside(p.low), y2: inside(p.high) }));
      }
    if (points.length > 1) {
      group.append(draw("path", { d: "M" + points.map(p => place(p).map(v => v.toFixed(1)).join(",")).join("L"),
                                  "stroke-dasharray": s.look.dash }));
    }
    for (const p of points) {
      const mark = markOf(s.look, ...place(p), large ? 4.6 : 3.4);
      mark.append(draw("title", {}, p.title));
      group.append(mark);
    }
    picture.append(group);
  });
  if (isNumber(spec.whole) && (spec.whole > 0 || !range.logarithmic)) {
    const at = inside(spec.whole), below = at < top + 14;
    picture.append(draw("line", { class: "whole", x1: left, x2: width - right, y1: at, y2: at }),
                   draw("text", { class: "whole-text halo", x: width - right, y: below ? at + 13 : at - 5, "text-anchor": "end" },
                        (large ? "full cache " : "full ") + written(spec.whole)));
  }
  node.replaceChildren(make("h3", {}, spec.title), picture);
}
