// Panels, a policy and a share removed each: heat maps of pass keys, pictures of what is kept.
const shareText = v => String(+(v * 100).toFixed(1)) + " %";
const removedText = v => v < 0 ? "own budget" : v === 0 ? "nothing removed" : shareText(v) + " removed";

// One row of panels a policy; `panelOf` makes each.
function drawPanels(node, items, panelOf) {
  const policies = [...new Set(items.map(item => item.policy))];
  const most = Math.max(...policies.map(policy => items.filter(item => item.policy === policy).length));
  const rows = make("div", { class: "panel-rows", style: `--panels:${Math.max(3, most)}` });
  for (const policy of policies) {
    const cells = make("div", { class: "panel-cells" });
    for (const item of items.filter(one => one.policy === policy)) cells.append(panelOf(item));
    rows.append(make("div", { class: "panel-row" }, make("h3", {}, policy), cells));
  }
  node.replaceChildren(rows);
}

// The text of a cell is black or white, whichever stands out more; of the middle ones that depends on the theme.
function heatMap(cells, score, lengths, depths) {
  const body = make("tbody");
  for (const depth of depths) {
    const line = make("tr", {}, make("th", { scope: "row" }, shareText(depth)));
    for (const length of lengths) {
      const cell = cells.find(one => one.length === length && one.depth === depth), value = cell && cell.scores[score];
      line.append(isNumber(value)
        ? make("td", { class: value > 0.6 ? "high" : value > 0.48 ? "middle" : null, style: `--v:${Math.min(1, Math.max(0, value))}`,
                       title: `${cell.samples} ${cell.samples === 1 ? "sample" : "samples"}` }, (value * 100).toFixed(0))
        : make("td", { class: "empty" }, "–"));
    }
    body.append(line);
  }
  const heads = lengths.map(length => make("th", { scope: "col" }, String(length)));
  return make("table", { class: "heat" }, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "depth"), ...heads)), body);
}

function drawPassKeys(section, data) {
  if (!data.depths.length) return section.remove();
  const select = section.querySelector("select"), panels = section.querySelector(".panels");
  const known = ["score", "partial", "prefix"].filter(name => data.depths.some(cell => name in cell.scores));
  const meaning = { score: "exact (all 64 digits)", partial: "partial (share of the digits)", prefix: "prefix (digits before the first mistake)" };
  for (const name of known) select.append(make("option", { value: name }, meaning[name]));
  if (known.includes("partial")) select.value = "partial";
  section.querySelector(".scale").append("0", make("i", { "aria-hidden": "true" }), "100");
  const lengths = [...new Set(data.depths.map(cell => cell.length))].sort((a, b) => a - b);
  const depths = [...new Set(data.depths.map(cell => cell.depth))].sort((a, b) => a - b);
  const settings = [];
  for (const row of data.rows)
    if (!settings.some(s => s.policy === row.policy && s.removed === row.removed)) settings.push({ policy: row.policy, removed: row.removed });
  const order = data.policies;
  settings.sort((a, b) => order.indexOf(a.policy) - order.indexOf(b.policy) || a.removed - b.removed);
  panels.style.setProperty("--panel-width", `${68 + 46 * lengths.length}px`);
  const show = () => drawPanels(panels, settings.filter(s => cellsOf(s).length), s =>
    make("figure", {}, make("figcaption", {}, removedText(s.removed)), heatMap(cellsOf(s), select.value, lengths, depths)));
  const cellsOf = s => data.depths.filter(cell => cell.policy === s.policy && cell.removed === s.removed);
  select.addEventListener("change", show);
  show();
}

// Ink whose opacity is the share kept: the page's theme turns it light by a filter, without drawing again.
function keptCanvas(picture) {
  const columns = Math.max(...picture.rows.map(row => row.length), 1), rows = picture.rows.length;
  const canvas = make("canvas", { width: columns, height: rows, role: "img",
    "aria-label": `${picture.policy}, ${removedText(picture.removed)}: share kept, ${rows} heads by ${columns} columns of positions` });
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  picture.rows.forEach((row, r) => {
    for (let c = 0; c < row.length; ++c) image.data[4 * (r * columns + c) + 3] = Math.round((row.charCodeAt(c) - 48) / 9 * 255);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

function keptPanel(picture) {
  const frame = make("div", {}, keptCanvas(picture));
  for (const edge of picture.needle)
    if (isNumber(edge) && edge >= 0 && edge <= 1) frame.append(make("b", { style: `left:${(edge * 100).toFixed(2)}%` }));
  return make("figure", { class: "picture" }, make("figcaption", {}, removedText(picture.removed)), frame);
}

function drawPictures(section, data) {
  if (!data.pictures.length) return section.remove();
  const select = section.querySelector("select"), panels = section.querySelector(".panels");
  const nameOf = p => `${p.task}, ${p.length} tokens, sample ${p.sample}`;
  for (const name of new Set(data.pictures.map(nameOf))) select.append(make("option", { value: name }, name));
  section.querySelector(".scale").append("nothing kept", make("i", { class: "ink", "aria-hidden": "true" }), "all kept");
  const show = () => drawPanels(panels, data.pictures.filter(p => nameOf(p) === select.value), keptPanel);
  select.addEventListener("change", show);
  show();
}
