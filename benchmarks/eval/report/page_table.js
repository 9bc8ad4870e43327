// Tables: one of all figures that sorts, and plain ones.

// Columns of all figures: head, title (what it is), value (what sorts) and cell (what is read).
function figureColumns(data) {
  const text = (head, title, value, cell) => ({ head, title, value, cell: cell || value, text: true });
  const figure = (head, title, value, digits) => ({ head, title, value, cell: row => written(value(row), digits) });
  const score = (row, task, name) => (row.tasks[task] && row.tasks[task].scores[name]) || [null, null, null, 0];
  const failed = (row, tasks) => tasks.some(one => row.tasks[one.name] && row.tasks[one.name].failed > 0);
  const estimated = (head, title, of, digits, tasks) => ({  // a star where some samples of these tasks have no result
    head, title, value: row => of(row)[0],
    cell: row => {
      const [mean, low, high, samples] = of(row);
      if (!isNumber(mean)) return "–";
      const half = samples > 1 ? make("small", {}, " ±" + ((high - low) * 50).toFixed(0)) : "";
      return make("span", {}, (mean * 100).toFixed(digits), half, failed(row, tasks) ? "*" : "");
    },
  });
  const cost = (row, name) => row.answers[name] !== null ? row.answers[name] : row.writing[name];

  const columns = [
    { ...text("policy", "as it was given", row => row.policy), first: true },
    figure("length", "tokens of prompt and answer", row => row.length, 0),
    { ...text("removed", "share of the context that was to go", row => row.removed, row => row.removed < 0 ? "own" : shareText(row.removed)),
      text: false },
    figure("kept %", "share of the context's tokens that is left", row => isNumber(cost(row, "kept_share")) ? cost(row, "kept_share") * 100 : null, 1),
    figure("kept tokens", "of a layer and head, mean", row => cost(row, "kept_tokens"), 0),
    figure("kept MB", "10^6 bytes of keys and values, mean", row => cost(row, "kept_mb"), 2),
    estimated("RULER", "mean of the RULER tasks' means, of 100", row => row.ruler, 1, data.tasks.filter(one => one.ruler)),
  ];
  for (const task of data.tasks.filter(one => one.kind === "answer"))
    columns.push(estimated(task.brief, task.name + ", of 100", row => score(row, task.name, "score"), 0, [task]));
  columns.push(estimated("pk part", "passkey64: share of the digits, of 100", row => score(row, "passkey64", "partial"), 0,
                         data.tasks.filter(one => one.name === "passkey64")));
  columns.push(figure("first token %", "answers whose first token is the full cache's", row => row.first_token[0] === null ? null : row.first_token[0] * 100, 0));
  for (const task of data.tasks.filter(one => one.kind === "writing")) {
    const generation = task.name === "generation", of = generation ? "gen. " : task.name === "perplexity" ? "" : task.brief + " ";
    const mean = (name, turn) => row => { const v = score(row, task.name, name)[0]; return v === null ? null : turn ? turn(v) : v; };
    columns.push(figure(generation ? "tail ppl" : of + "ppl", task.name + ": perplexity", mean("nll", Math.exp), 2),
                 figure(of + "KL", task.name + ": nats a token", mean("kl"), 3),
                 figure(of + "same %", task.name + ": tokens whose most probable one is the full cache's", mean("same_token", v => v * 100), 1),
                 figure("agreed", task.name + ": tokens before the first that differs", mean("agreed"), 1));
  }
  columns.push(figure("compress ms", "all layers, median", row => cost(row, "compress_ms"), 2),
               figure("tokens/s", "decoding, median", row => cost(row, "decode_rate"), 1));
  return columns.filter(c => c.text || data.rows.some(row => isNumber(c.value(row))));
}

// What has no value stays below, whichever way the rest is sorted.
function sortedRows(rows, column, descending) {
  const missing = v => v === null || v === undefined;
  return rows.map((row, i) => ({ row, i, v: column.value(row) })).sort((a, b) => {
    if (missing(a.v) || missing(b.v)) return missing(a.v) - missing(b.v) || a.i - b.i;
    const order = column.text ? String(a.v).localeCompare(String(b.v)) : a.v - b.v;
    return (descending ? -order : order) || a.i - b.i;
  }).map(one => one.row);
}

function drawFigures(section, data) {
  const columns = figureColumns(data), select = section.querySelector("select"), state = { column: null, descending: false };
  if (data.lengths.length > 1) select.append(make("option", { value: "" }, "all"));
  else section.querySelector(".choice").hidden = true;
  for (const length of data.lengths) select.append(make("option", { value: length }, String(length)));
  const briefs = data.tasks.filter(task => task.brief !== task.name && task.kind === "answer");
  if (briefs.length) section.querySelector("#briefs").textContent = briefs.map(task => `${task.brief}: ${task.name}`).join(", ") + ".";

  const classOf = c => [c.text ? "text" : "", c.first ? "first long" : ""].join(" ").trim() || null;
  const heads = columns.map(c => make("th", { scope: "col", class: classOf(c), "aria-sort": "none", title: c.title },
                                      make("button", { type: "button", onclick: () => sortBy(c) }, c.head)));
  const body = make("tbody");
  const longest = Math.min(32, Math.max(...data.policies.map(policy => policy.length)));
  const show = () => {
    let rows = data.rows.filter(row => !select.value || row.length === Number(select.value));
    if (state.column) rows = sortedRows(rows, state.column, state.descending);
    body.replaceChildren(...rows.map(row => make("tr", { class: row.policy === "full" ? "full" : null },
      ...columns.map(c => make("td", { class: classOf(c), title: c.first && row.parsed ? row.parsed : null }, c.cell(row))))));
    columns.forEach((c, i) => heads[i].setAttribute("aria-sort", c !== state.column ? "none" : state.descending ? "descending" : "ascending"));
  };
  const sortBy = column => {
    state.descending = state.column === column ? !state.descending : !column.text;
    state.column = column;
    show();
  };
  select.addEventListener("change", show);
  section.querySelector(".scroll").append(make("table", { class: "figures sorted", style: `--longest: ${longest + 2}ch` }, make("thead", {}, make("tr", {}, ...heads)), body));
  show();
}

function plainTable(heads, rows) {
  return make("table", { class: "figures plain" },
    make("thead", {}, make("tr", {}, ...heads.map(head => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows.map(cells => make("tr", {}, ...cells.map(cell => make("td", {}, cell))))));
}

function drawFailures(section, data) {
  if (!data.failures.length) return section.remove();
  const grouped = new Map();  // one line for all tasks of a row that failed alike
  for (const f of data.failures) {
    const key = JSON.stringify([f.policy, f.removed, f.length, f.reason]);
    if (!grouped.has(key)) grouped.set(key, { ...f, tasks: [] });
    grouped.get(key).tasks.push(`${f.task} (${f.samples} of ${f.of})`);
  }
  section.querySelector(".scroll").append(plainTable(["Policy", "Removed", "Length", "Why", "Tasks (samples)"],
    [...grouped.values()].map(f => [f.policy, f.removed < 0 ? "own" : shareText(f.removed), String(f.length), f.reason, f.tasks.join(", ")])));
}

function drawAnswers(section, data) {
  if (!data.answers.length) return section.remove();
  const select = section.querySelector("select"), nameOf = a => `${a.task}, ${a.length} tokens`;
  const known = new Set(data.answers.map(nameOf)), ordered = [];
  for (const length of data.lengths) for (const task of data.tasks) ordered.push(nameOf({ task: task.name, length }));
  for (const name of ordered.filter(one => known.has(one))) select.append(make("option", { value: name }, name));
  const show = () => section.querySelector(".scroll").replaceChildren(plainTable(["Policy", "Removed", "Answer"],
    data.answers.filter(a => nameOf(a) === select.value).map(a => [a.policy, a.removed < 0 ? "own" : shareText(a.removed), a.answer])));
  select.addEventListener("change", show);
  show();
}

function drawRuns(section, data) {
  if (!data.runs.length) return section.remove();
  const facts = [["Date", "date"], ["Model", "model"], ["Describes itself as", "model_name"], ["SHA-256", "model_sha256"], ["lagkv", "lagkv"],
    ["llama.cpp", "llama"], ["Compiler", "compiler"], ["Machine", "machine"], ["Threads", "threads"], ["Seed", "seed"],
    ["Cache", "cache_type"], ["Command", "command"]];
  const body = make("tbody");
  const add = (name, value) => body.append(make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)));
  data.runs.forEach((run, i) => {
    if (data.runs.length > 1) body.append(make("tr", {}, make("th", { scope: "row", colspan: "2" }, `Run ${i + 1} of ${data.runs.length}`)));
    for (const [name, field] of facts) if (run[field] !== "") add(name, String(run[field]));
    add("Values", run.transposed ? "transposed: without flash attention" : "as the keys");
    add("Question", run.question_seen ? "seen when the cache is compressed" : "not seen when the cache is compressed");
    add("Compressed", run.chunk ? `chunk by chunk of ${run.chunk} tokens` : "once, after the prefill");
  });
  section.querySelector(".scroll").append(make("table", { class: "figures plain" }, body));
}
