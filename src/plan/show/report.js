"use strict";
const R = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const STAGES = ["forward", "backward", "update"];
const color = f => ["f32", "f16", "bf16", "f64", "f8e4m3"].includes(f) ? `var(--${f})` : "var(--other)";
const narrow = () => innerWidth <= 640;
const widthOf = id => Math.max(280, $(id).clientWidth - 24);

const seconds = s => s >= 1 ? s.toFixed(2) + " s" : s >= 1e-3 ? (s * 1e3).toFixed(2) + " ms"
  : s >= 1e-7 || s === 0 ? (s * 1e6).toFixed(1) + " µs" : (s * 1e9).toFixed(1) + " ns";
const bytes = b => b >= 1e9 ? (b / 1e9).toFixed(2) + " GB" : b >= 1e6 ? (b / 1e6).toFixed(1) + " MB"
  : b >= 1e3 ? (b / 1e3).toFixed(1) + " kB" : b + " B";
const percent = x => x === Infinity ? "overflows" : x > 1e4 ? "> 10⁶ %" : x === 0 ? "0"
  : 100 * x < 0.01 ? "< 0.01 %" : 100 * x < 10 ? (100 * x).toFixed(2) + " %" : (100 * x).toFixed(0) + " %";
const short = (text, most) => text.length > most ? text.slice(0, most - 1) + "…" : text;
const sum = (list, key) => list.reduce((total, x) => total + key(x), 0);

// An element of the page, and one of a drawing.
function add(parent, name, className, text) {
  const e = document.createElement(name);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  parent.append(e);
  return e;
}
function el(parent, name, attrs, text) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const k in attrs) e.setAttribute(k, attrs[k]);
  if (text !== undefined) e.textContent = text;
  parent.appendChild(e);
  return e;
}
function svg(id, width, height) {
  $(id).textContent = "";
  return el($(id), "svg", { width, height, viewBox: `0 0 ${width} ${height}` });
}
function hover(e, text) {
  const tip = $("tip");
  e.addEventListener("mousemove", m => {
    tip.style.display = "block";
    tip.textContent = text;
    tip.style.left = Math.max(8, Math.min(m.clientX + 14, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = Math.min(m.clientY + 16, innerHeight - tip.offsetHeight - 8) + "px";
  });
  e.addEventListener("mouseleave", () => tip.style.display = "none");
}

function head() {
  $("title").textContent = R.name;
  const facts = [R.run, `policy ${R.policy}`, `for ${R.target} (${R.device})`, `batch ${R.batch}`,
    `${R.parameters.toLocaleString("en")} parameters`, `mantissa ${R.version}`];
  $("subtitle").textContent = facts.join(" · ");
  const card = (big, small) => {
    const c = add($("cards"), "div", "card");
    add(c, "b", "", big);
    add(c, "span", "", small);
  };
  card(seconds(R.seconds), `predicted, in ${R.launches.length} launches`);
  for (const [name, s] of R.others) card((s / R.seconds).toFixed(2) + " ×", `this time: ${name}, ${seconds(s)}`);
  card(bytes(R.memory), "of memory");
  card(bytes(R.bytes), "moved");
  if (!R.evidence) return;
  const e = R.evidence;
  if (e.measured !== null) card(percent(e.measured), `of the budget is used (estimated: ${percent(e.estimated)})`);
  card(String(e.loss_scale), "loss scale to begin with");
  $("evidence").textContent = e.measured === null ? e.budget : `${e.budget}; measured on ${e.measured_on}`;
}

// The format that a launch is coloured by where one colour has to do.
const mainFormat = l => l.formats.find(f => f === "f16" || f === "bf16") || l.formats[0] || "other";

// A row of bars: `launches` summed up beside the longest row. Returns the cell of the name.
function barRow(parent, launches, longest, className) {
  const row = add(parent, "div", "row " + (className || ""));
  const time = sum(launches, l => l.seconds), floor = sum(launches, l => Math.min(l.floor, l.seconds));
  const name = add(row, "span", "");
  const bar = add(row, "div", "bar");
  const byFormat = {};
  for (const l of launches) {
    const part = byFormat[mainFormat(l)] ||= [0, 0];
    part[0] += Math.min(l.floor, l.seconds);
    part[1] += l.seconds - Math.min(l.floor, l.seconds);
  }
  for (const f of Object.keys(byFormat).sort()) byFormat[f].forEach((s, over) => {
    const i = add(bar, "i", over ? "over" : "");
    i.style.cssText = `width: ${100 * s / longest}%; background: ${color(f)}`;
  });
  const number = (text, wide) => add(row, "span", "n" + (wide ? " wide dim" : ""), text);
  number(seconds(time));
  number((100 * time / R.seconds).toFixed(0) + " %");
  const times = time / floor;
  number(times < 1e4 ? times.toFixed(times < 10 ? 1 : 0) + " ×" : "", true);
  number(String(sum(launches, l => l.times)), true);
  number(bytes(sum(launches, l => l.bytes)), true);
  hover(bar, `${seconds(time)} predicted, ${seconds(floor)} at least`);
  return name;
}
function barHead(parent, first) {
  const row = add(parent, "div", "row head");
  add(row, "span", "", first);
  add(row, "span", "wide");
  for (const [text, wide] of [["time", 0], ["share", 0], ["/ floor", 1], ["launches", 1], ["moved", 1]]) {
    add(row, "span", "n" + (wide ? " wide" : ""), text);
  }
}
function grouped(launches, key) {
  const groups = new Map();
  for (const l of launches) groups.set(key(l), [...(groups.get(key(l)) || []), l]);
  return [...groups].sort((a, b) => sum(b[1], l => l.seconds) - sum(a[1], l => l.seconds));
}

function kinds() {
  const used = [...new Set(R.launches.flatMap(l => l.formats))].sort();
  for (const f of used) {
    const s = add($("legend"), "span", "");
    add(s, "i", "").style.background = color(f);
    s.append(f);
  }
  const groups = grouped(R.launches, l => l.kind), longest = sum(groups[0]?.[1] || [], l => l.seconds);
  barHead($("kinds"), "kind");
  for (const [kind, launches] of groups) barRow($("kinds"), launches, longest).textContent = kind;
  barRow($("kinds"), R.launches, R.seconds, "sum").textContent = "all";
}

function longestLaunches() {
  const shown = R.launches.slice().sort((a, b) => b.seconds - a.seconds).slice(0, 24);
  barHead($("time"), "launch");
  for (const l of shown) launchRow($("time"), l, shown[0].seconds, 0);
}
function launchRow(parent, l, longest, depth) {
  const name = barRow(parent, [l], longest, "kernel-row");
  name.style.paddingLeft = 16 * depth + "px";
  name.textContent = `${l.kind}  ${l.computes.join(", ")}`;
  hover(name, `${l.kind}, ${l.stage}${l.times > 1 ? ", " + l.times + " times" : ""}\n${l.computes.slice(0, 24).join("\n")}`);
}

// Modules as a tree: each row opens into the modules inside it and its own launches.
function modules() {
  if (!R.launches.some(l => l.module)) { $("modules-section").remove(); return; }
  const root = { name: "", inner: new Map(), own: [], all: [] };
  for (const l of R.launches) {
    let node = root;
    const path = l.module ? l.module.split(".") : [l.stage === "update" ? "optimizer and loss scaler" : "no module"];
    for (const part of path) {
      if (!node.inner.has(part)) node.inner.set(part, { name: part, inner: new Map(), own: [], all: [] });
      node = node.inner.get(part);
      node.all.push(l);
    }
    node.own.push(l);
  }
  const open = new Set();
  const time = n => sum(n.all, l => l.seconds);
  const draw = () => {
    const panel = $("modules");
    panel.textContent = "";
    barHead(panel, "module");
    const tops = [...root.inner.values()], longest = Math.max(...tops.map(time));
    const visit = (node, path, depth) => {
      // A module with nothing but one inside is shown with it, in one row.
      while (node.inner.size === 1 && !node.own.length) {
        const only = [...node.inner.values()][0];
        node = { ...only, name: `${node.name}.${only.name}` };
      }
      const id = `${path}.${node.name}`, isOpen = open.has(id), name = barRow(panel, node.all, longest);
      name.style.paddingLeft = 16 * depth + "px";
      const button = add(name, "button", "", `${isOpen ? "▾" : "▸"} ${node.name}`);
      button.setAttribute("aria-expanded", isOpen);
      button.onclick = () => { isOpen ? open.delete(id) : open.add(id); draw(); };
      if (!isOpen) return;
      [...node.inner.values()].forEach(n => visit(n, id, depth + 1));
      node.own.slice().sort((a, b) => b.seconds - a.seconds).forEach(l => launchRow(panel, l, longest, depth + 1));
    };
    const isModule = n => n.all[0].module !== null;
    tops.sort((a, b) => isModule(b) - isModule(a)).forEach(n => visit(n, "", 0));
  };
  // A module that takes most of the time is open.
  for (const n of root.inner.values()) if (time(n) > R.seconds / 2) open.add("." + n.name);
  draw();
}

function graph() {
  const width = Math.max(widthOf("graph") - 16, 300), gap = narrow() ? 8 : 20, lane = (width - 2 * gap) / 3;
  const named = lane > 220, box = named ? 140 : lane - 16, row = 17, top = 26;
  const longest = Math.max(...R.launches.map(l => l.seconds));
  const length = s => 6 + box * Math.sqrt(s / longest);
  const taken = {}, place = [];
  let updates = 0;
  R.launches.forEach((l, i) => {
    const x = STAGES.indexOf(l.stage);
    let y = l.stage === "update" ? updates++ : l.row;
    while (taken[x + ":" + y]) y++;
    taken[x + ":" + y] = true;
    place[i] = { x: 4 + x * (lane + gap), y: top + y * row };
  });
  const s = svg("graph", width, Math.max(...place.map(p => p.y)) + row + 10), lines = el(s, "g", {});
  STAGES.forEach((n, i) => el(s, "text", { x: 4 + i * (lane + gap), y: 15, class: "dim" }, n));
  const boxes = R.launches.map((l, i) => {
    const g = el(s, "g", { class: "kernel" }), w = length(l.seconds), f = l.formats.length ? l.formats : ["other"];
    f.forEach((name, k) => el(g, "rect",
      { x: place[i].x + w * k / f.length, y: place[i].y, width: w / f.length, height: row - 4, rx: 2, fill: color(name) }));
    const label = `${l.kind}  ${l.computes[0] || ""}${l.computes.length > 1 ? " +" + (l.computes.length - 1) : ""}`;
    const letters = Math.floor((lane - w - 6) / 6.3);
    if (named && letters > 4) el(g, "text", { x: place[i].x + w + 6, y: place[i].y + 10, class: "dim" }, short(label, letters));
    hover(g, `${l.kind}${l.times > 1 ? ", " + l.times + " times" : ""}\n${seconds(l.seconds)} predicted, ${seconds(l.floor)} at least, ${bytes(l.bytes)}\n${l.computes.slice(0, 12).join(", ")}`);
    g.addEventListener("mouseenter", () => show(i));
    g.addEventListener("mouseleave", () => { lines.textContent = ""; boxes.forEach(b => b.classList.remove("near")); });
    return g;
  });
  function show(i) {
    for (const [a, b] of R.edges.filter(e => e.includes(i))) {
      const p = place[a], q = place[b], x1 = p.x + length(R.launches[a].seconds), y1 = p.y + 6, y2 = q.y + 6;
      el(lines, "path", { d: `M${x1},${y1} C${x1 + 40},${y1} ${q.x - 40},${y2} ${q.x},${y2}`, fill: "none",
        stroke: a === i ? "var(--mark)" : "var(--f16)", "stroke-opacity": .7 });
      boxes[a === i ? b : a].classList.add("near");
    }
  }
}

function memory() {
  const w = widthOf("memory"), h = 190, n = R.launches.length, most = Math.max(1, ...R.launches.map(l => l.live));
  const s = svg("memory", w, h + 24);
  $("memory-note").textContent = `Temporaries alive at each launch, up to ${bytes(most)}, beside ${bytes(R.resident)} of parameters, optimizer state and inputs.`;
  const x = i => 64 + (w - 72) * i / Math.max(1, n - 1), y = b => h - (h - 14) * b / most;
  [0, .5, 1].forEach(t => {
    el(s, "line", { x1: 64, x2: w - 8, y1: y(t * most), y2: y(t * most), class: "axis" });
    el(s, "text", { x: 58, y: y(t * most) + 4, "text-anchor": "end", class: "dim" }, bytes(Math.round(t * most)));
  });
  const line = R.launches.map((l, i) => `L${x(i)},${y(l.live)}`).join(" ");
  el(s, "path", { d: `M${x(0)},${h} ${line} L${x(n - 1)},${h} Z`, fill: "var(--f16)", opacity: .35 });
  let start = 0, named = "";
  for (let i = 1; i <= n; i++) if (i === n || R.launches[i].stage !== R.launches[start].stage) {
    const stage = R.launches[start].stage;
    if (i - start > n / 20 && stage !== named) {
      named = stage;
      el(s, "text", { x: (x(start) + x(i - 1)) / 2, y: h + 18, "text-anchor": "middle", class: "dim" }, stage);
    }
    el(s, "line", { x1: x(start), x2: x(start), y1: h, y2: h + 6, class: "axis" });
    start = i;
  }
  R.launches.forEach((l, i) => {
    const strip = el(s, "rect", { x: x(i) - 2, y: 0, width: Math.max(4, (w - 72) / n), height: h, fill: "transparent" });
    hover(strip, `${bytes(l.live)} at ${l.kind} ${l.computes[0] || ""}`);
  });
}

function frontier() {
  const e = R.evidence, points = e ? e.frontier : [];
  if (points.length < 2) { $("frontier-section").remove(); return; }
  const w = widthOf("frontier"), h = 240, s = svg("frontier", w, h + 34), floor = 1e-6;
  const all = points.map(p => Math.max(p[0], floor)).concat([1, Math.max(e.estimated, floor)]);
  const lo = Math.log10(Math.min(...all)) - .2, hi = Math.log10(Math.max(...all)) + .3;
  const times = points.map(p => p[1]).concat(R.seconds), t0 = Math.min(...times) * .93, t1 = Math.max(...times) * 1.05;
  const x = n => 70 + (w - 100) * (Math.log10(Math.max(n, floor)) - lo) / (hi - lo), y = t => h - (h - 20) * (t - t0) / (t1 - t0);
  if (points.some(p => p[0] < floor)) {
    el(s, "text", { x: x(floor), y: h + 32, "text-anchor": "middle", class: "dim" }, "nothing rounded");
  }
  const each = narrow() ? 2 : 1;
  for (let d = Math.ceil(lo); d <= hi; d += each) {
    el(s, "line", { x1: x(10 ** d), x2: x(10 ** d), y1: 10, y2: h, class: "axis" });
    el(s, "text", { x: x(10 ** d), y: h + 18, "text-anchor": "middle", class: "dim" }, d < -3 ? `1e${d}` : percent(10 ** d));
  }
  [t0, (t0 + t1) / 2, t1].forEach(t => el(s, "text", { x: 62, y: y(t) + 4, "text-anchor": "end", class: "dim" }, seconds(t)));
  el(s, "line", { x1: x(1), x2: x(1), y1: 10, y2: h, stroke: "var(--mark)", "stroke-dasharray": "4 3" });
  el(s, "text", { x: x(1) - 5, y: 20, "text-anchor": "end", style: "fill: var(--mark)" }, "budget");
  el(s, "path", { d: "M" + points.map(p => `${x(p[0])},${y(p[1])}`).join(" L"), fill: "none", stroke: "var(--f32)" });
  points.forEach(p => hover(el(s, "circle", { cx: x(p[0]), cy: y(p[1]), r: 4, fill: "var(--f32)" }),
    `${percent(p[0])} of the budget: ${seconds(p[1])}`));
  hover(el(s, "circle", { cx: x(e.estimated), cy: y(R.seconds), r: 7, fill: "var(--f16)" }),
    `this plan: ${percent(e.estimated)}, ${seconds(R.seconds)}`);
  const left = x(e.estimated) > w - 90;
  el(s, "text", { x: x(e.estimated) + (left ? -11 : 11), y: y(R.seconds) + (left ? -8 : 4), "text-anchor": left ? "end" : "start" }, "this plan");
}

// Elements of a value by power of two; with an axis, over the numbers that each format has.
function histogram(parent, v, w, h, axis) {
  const s = el(parent, "svg", { width: w, height: h + (axis ? 18 * (R.formats.length + 1) : 0) });
  const from = -50, to = 40, x = e => w * (e - from) / (to - from);
  const held = Object.entries(v.spread.octaves).map(([e, n]) => [Math.max(from, Math.min(to - 1, +e)), n]);
  const most = Math.max(1, ...held.map(p => p[1]));
  if (axis) R.formats.forEach((f, i) => {
    const y = h + 4 + 18 * i, normal = Math.max(0, x(f.normal)), end = Math.min(w, x(f.largest + 1));
    el(s, "rect", { x: Math.max(0, x(f.smallest)), y, width: Math.max(0, x(f.normal) - Math.max(0, x(f.smallest))), height: 11, fill: color(f.name), opacity: .35 });
    el(s, "rect", { x: normal, y, width: end - normal, height: 11, fill: color(f.name) });
    el(s, "text", { x: normal + 4, y: y + 9, style: "fill: #fff; font-size: 10px" }, f.name);
  });
  const each = w < 500 ? 24 : 12;
  if (axis) for (let e = -48; e <= 36; e += each) {
    el(s, "text", { x: x(e), y: h + 14 + 18 * R.formats.length, class: "dim", "text-anchor": "middle", style: "font-size: 10px" }, "2^" + e);
  }
  for (const [e, n] of held) {
    const height = Math.max(1, h * n / most);
    el(s, "rect", { x: x(e), y: h - height, width: Math.max(1, x(1) - x(0) - (axis ? 1 : 0)), height, fill: "var(--fg)", opacity: .8 });
  }
}

// Columns: heading, what it sorts by, whether a narrow page has it, and how a cell is filled.
function columns() {
  const share = (v, f) => f in v.shares ? v.shares[f] ?? Infinity : null;
  const largest = v => v.spread && v.spread.count > v.spread.zeros ? v.spread.largest : null;
  const zeros = v => v.spread ? v.spread.zeros / Math.max(1, v.spread.count) : null;
  const number = (key, show) => (td, v) => { td.className = "num"; const n = key(v); td.textContent = n === null ? "" : show(n); };
  const formats = (td, v) => {
    if (!v.formats.length) td.textContent = "registers";
    if (v.source) td.append(v.source + (v.formats.length > 1 ? ", kept as " : " "));
    v.formats.forEach(f => { const c = add(td, "span", "chip", f); c.style.background = color(f); });
  };
  const all = [
    { name: "value", key: v => v.name, narrow: true, fill: (td, v) => { td.className = "name"; td.textContent = td.title = v.name; } },
    { name: "stage", key: v => v.stage, fill: (td, v) => td.textContent = v.stage },
    { name: "shape", key: v => sum([v.shape], s => s.reduce((a, b) => a * b, 1)), fill: (td, v) => td.textContent = v.shape.join(" × ") },
    { name: "stored as", key: v => v.formats.join(" "), narrow: true, fill: formats },
    { name: "largest", key: largest, measured: true, fill: number(largest, n => n.toExponential(2)) },
    { name: "zeros", key: zeros, measured: true, fill: number(zeros, percent) },
  ];
  R.formats.filter(f => R.values.some(v => f.name in v.shares)).forEach((f, i) => {
    const key = v => share(v, f.name);
    all.push({ name: `noise² as ${f.name}`, key, narrow: i === 0, fill: number(key, percent) });
  });
  all.push({ name: "magnitudes", measured: true, fill: (td, v) => v.spread && histogram(td, v, 150, 20, false) });
  const anySpread = R.values.some(v => v.spread);
  return all.filter(c => anySpread || !c.measured);
}

function values() {
  const cols = columns(), shown = () => cols.filter(c => c.narrow || !narrow());
  let sort = cols.find(c => c.name.startsWith("noise²")) || cols[2], up = false, limit = 150;
  // A value named behind # is shown at once.
  let open = decodeURIComponent(location.hash.slice(1)) || null;
  if (open) $("search").value = open;
  if (R.values.some(v => v.spread)) {
    $("values-note").textContent += " Histograms count elements by power of two, over the numbers that each format has (pale: with fewer bits).";
  }
  const head = document.querySelector("#values thead").insertRow(), body = document.querySelector("#values tbody");
  [...new Set(R.values.flatMap(v => v.formats))].sort().forEach(f => $("format").append(new Option(f)));
  function details(v) {
    const row = body.insertRow();
    row.className = "open";
    const td = row.insertCell();
    td.colSpan = shown().length;
    add(td, "div", "", v.name);
    add(td, "div", "", `${v.stage}, ${v.shape.join(" × ") || "a scalar"}`);
    add(td, "div", "", [v.reason, v.rule ? "rule " + v.rule : ""].filter(Boolean).join("; "));
    if (v.spread) histogram(td, v, Math.min(900, widthOf("memory") - 20), 110, true);
  }
  function draw() {
    const q = $("search").value.toLowerCase(), st = $("stage").value, fm = $("format").value;
    const found = v => !q || v.name.toLowerCase().includes(q) || (v.reason || "").toLowerCase().includes(q);
    const rows = R.values.filter(v => (!st || v.stage === st) && (!fm || v.formats.includes(fm)) && found(v));
    const of = v => { const k = sort.key(v); return k === null ? (up ? Infinity : -Infinity) : k; };
    rows.sort((a, b) => { const x = of(a), y = of(b); return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1); });
    head.textContent = body.textContent = "";
    for (const c of shown()) {
      const th = add(head, "th", c === sort ? "sorted" + (up ? " up" : "") : "", c.name);
      if (c.key) th.onclick = () => { up = sort === c ? !up : c === cols[0]; sort = c; draw(); };
    }
    for (const v of rows.slice(0, limit)) {
      const tr = body.insertRow();
      for (const c of shown()) c.fill(tr.insertCell(), v);
      tr.onclick = () => { open = open === v.name ? null : v.name; draw(); };
      if (open === v.name) details(v);
    }
    $("count").textContent = `${rows.length} of ${R.values.length}`;
    $("more").style.display = rows.length > limit ? "" : "none";
  }
  $("search").oninput = $("stage").onchange = $("format").onchange = draw;
  $("more").onclick = () => { limit += 500; draw(); };
  draw();
  return draw;
}

head();
kinds();
modules();
longestLaunches();
const drawn = [graph, memory, frontier];
drawn.forEach(draw => draw());
drawn.push(values());
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  drawn.filter(d => d !== frontier || $("frontier")).forEach(draw => draw());
});
