// What the controls choose, and the sections in order.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const looks = new Map(data.policies.filter(policy => policy !== "full").map((policy, i) => [policy, lookOf(i)]));
const hiddenPolicies = new Set();
const lengthSelect = byId("length"), memorySelect = byId("memory");

function describe() {
  const samples = Math.max(0, ...data.rows.flatMap(row => Object.values(row.tasks).map(task => task.samples + task.failed)));
  const run = data.runs[data.runs.length - 1], count = (n, one, more) => `${n} ${n === 1 ? one : more}`;
  byId("lead").textContent =
    `${count(looks.size, "policy", "policies")} against the full cache: ${count(data.tasks.length, "task", "tasks")}, ` +
    `prompts of ${data.lengths.join(", ")} tokens, ` +
    `up to ${count(samples, "sample", "samples")} each` +
    (run && run.model_name ? `; ${run.model_name}` : "") + (run && run.date ? `; ${run.date.slice(0, 10)}` : "") + ".";
}

// Figures of one kind at one length as lines, a policy each. `costs` names what the memory is taken from; `of` picks [mean, low,
// high, samples] of a row.
function chartSpec(length, costs, of, spec, turn = v => v) {
  const megabytes = memorySelect.value === "mb", rows = data.rows.filter(row => row.length === length);
  const xOf = row => row[costs][megabytes ? "kept_mb" : "kept_share"];
  const turned = v => isNumber(v) ? turn(v) : null;
  const full = rows.find(row => row.policy === "full");
  const xs = rows.map(xOf).filter(isNumber), fullX = rows.map(row => row[costs].full_mb).filter(isNumber);
  const series = [];
  for (const [policy, look] of looks) {
    if (hiddenPolicies.has(policy)) continue;
    const points = rows.filter(row => row.policy === policy && of(row)).map(row => {
      const [mean, low, high] = of(row).map(turned), x = xOf(row);
      const kept = isNumber(x) ? (megabytes ? written(x) + " MB" : shareText(x)) + " kept" : "";
      return { x: isNumber(x) && !megabytes ? x * 100 : x, y: mean, low, high,
               title: `${policy}, ${removedText(row.removed)}: ${written(mean)} [${written(low)}, ${written(high)}], ${kept}` };
    });
    if (points.some(p => isNumber(p.x) && isNumber(p.y))) series.push({ name: policy, look, points });
  }
  const whole = full && of(full) ? turned(of(full)[0]) : null;
  return { ...spec, series, whole, xMax: megabytes ? Math.max(...xs, ...fullX, 1e-9) : Math.max(100, ...xs.map(x => x * 100)),
           xTitle: megabytes ? "cache kept, MB" : "cache kept, %", xTicks: !megabytes && xs.every(x => x <= 1) ? [0, 25, 50, 75, 100] : null };
}

const scoreOf = (task, name) => row => row.tasks[task] && row.tasks[task].scores[name];
const hasPoints = spec => spec.series.length > 0 || isNumber(spec.whole);
const upToHundred = { range: [0, 100], yTicks: [0, 25, 50, 75, 100] };
const accuracy = { ...upToHundred, yTitle: "score, of 100" };
const hundred = v => v * 100;

function writingSpecs(length) {
  const specs = [];
  for (const task of data.tasks.filter(one => one.kind === "writing")) {
    const generation = task.name === "generation", of = generation ? "Written text" : task.name === "perplexity" ? "Read text" : task.name === "perplexity_code" ? "Read code" : task.name;
    const add = (score, title, rest, turn) => specs.push(chartSpec(length, "writing", scoreOf(task.name, score), { title: `${of}: ${title}`, ...rest }, turn));
    add("nll", generation ? "perplexity of its second half" : "perplexity", { yTitle: "perplexity", logarithmic: true }, Math.exp);
    add("kl", "divergence from the full cache", { yTitle: "KL, nats a token", logarithmic: true, fromZero: true });
    add("same_token", "same most probable token", { ...upToHundred, yTitle: "tokens, %" }, hundred);
    add("agreed", "tokens before it differs", { yTitle: "tokens", fromZero: true });
  }
  return specs;
}

// Sections without figures at any length go; those without any at this one say so.
function drawCharts(id, specs) {
  const node = byId(id).querySelector(".charts");
  const drawn = specs.filter(hasPoints).map(spec => ({ spec, figure: make("figure", { class: "chart", tabindex: "-1" }) }));
  node.replaceChildren(...drawn.map(one => one.figure));
  if (!drawn.length) node.append(make("p", { class: "none" }, "Nothing was measured at this length."));
  for (const one of drawn) drawChart(one.figure, one.spec);
}

function drawAllCharts() {
  const length = Number(lengthSelect.value);
  if (byId("ruler"))
    drawCharts("ruler", data.lengths.map(one => chartSpec(one, "answers", row => row.ruler, { ...accuracy, title: `RULER mean, ${one} tokens` }, hundred)));
  if (byId("tasks"))
    drawCharts("tasks", data.tasks.filter(task => task.kind === "answer").map(task =>
      chartSpec(length, "answers", scoreOf(task.name, "score"), { ...accuracy, title: task.name }, hundred)));
  if (byId("writing")) drawCharts("writing", writingSpecs(length));
}

function drawLegend() {
  const name = policy => on => document.querySelectorAll(".chart").forEach(chart => {
    chart.classList.toggle("faded", on);
    chart.querySelectorAll(".series").forEach(s => s.classList.toggle("named", s.dataset.policy === policy));
  });
  for (const [policy, look] of looks) {
    const sample = draw("svg", { width: 34, height: 14, viewBox: "0 0 34 14", class: "series", style: `color:${look.color}`, "aria-hidden": "true" },
      draw("path", { d: "M1,7H33", "stroke-dasharray": look.dash }), markOf(look, 17, 7, 4.4));
    const point = name(policy);
    const button = make("button", { type: "button", "aria-pressed": "true", onmouseenter: () => point(true), onmouseleave: () => point(false),
      onfocus: () => point(true), onblur: () => point(false),
      onclick: () => {
        if (!hiddenPolicies.delete(policy)) hiddenPolicies.add(policy);
        button.setAttribute("aria-pressed", String(!hiddenPolicies.has(policy)));
        drawAllCharts();
      } }, sample, policy);
    byId("legend").append(button);
  }
}

function start() {
  describe();
  for (const length of data.lengths) lengthSelect.append(make("option", { value: length }, `${length} tokens`));
  if (data.lengths.length) lengthSelect.value = data.lengths[data.lengths.length - 1];
  if (data.lengths.length < 2) byId("length-label").hidden = true;
  if (!data.rows.some(row => isNumber(row.ruler[0]))) byId("ruler").remove();
  for (const [id, kind] of [["tasks", "answer"], ["writing", "writing"]]) {
    const known = data.tasks.filter(task => task.kind === kind).map(task => task.name);
    if (!data.rows.some(row => known.some(task => row.tasks[task] && row.tasks[task].samples))) byId(id).remove();
  }
  drawLegend();
  drawAllCharts();
  drawPassKeys(byId("passkey"), data);
  drawPictures(byId("survivors"), data);
  drawFigures(byId("figures"), data);
  drawFailures(byId("failures"), data);
  drawAnswers(byId("answers"), data);
  drawRuns(byId("runs"), data);

  lengthSelect.addEventListener("change", drawAllCharts);
  memorySelect.addEventListener("change", drawAllCharts);
  let width = document.body.clientWidth;
  new ResizeObserver(() => {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    drawAllCharts();
  }).observe(document.body);
  const folded = [];
  addEventListener("beforeprint", () => document.querySelectorAll("details:not([open])").forEach(one => { folded.push(one); one.open = true; }));
  addEventListener("afterprint", () => { while (folded.length) folded.pop().open = false; });
}

start();
