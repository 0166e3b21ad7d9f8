// The list of runs: a box that filters its rows, and the curves of ticked runs in one chart.
for (const part of document.querySelectorAll(".runs")) {
  const table = part.querySelector("table"), rows = [...table.tBodies[0].rows];
  const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent.trim());
  const filter = part.querySelector(".filter"), box = filter.querySelector("input");
  const figure = part.querySelector(".overlay"), curves = part.querySelector(".curves");
  filter.hidden = false;
  const meets = (row, word) => {
    if (word.length > 1 && word[0] === "-") return !meets(row, word.slice(1));
    const at = word.indexOf("=");
    const column = at > 0 ? heads.findIndex((head) => head.replace(" ", "_") === word.slice(0, at)) : -1;
    if (column < 0) return row.textContent.toLowerCase().includes(word);
    const cell = row.cells[column], wanted = word.slice(at + 1), sort = cell.dataset.sort;
    if (sort && wanted !== "" && Number(sort) === Number(wanted)) return true;
    return cell.textContent.trim().toLowerCase() === wanted;
  };
  const sift = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => meets(row, word));
    const shown = rows.filter((row) => !row.hidden).length;
    filter.querySelector(".count").textContent = `${shown} of ${rows.length}`;
  };
  box.addEventListener("input", sift);
  sift();
  if (figure) overlay(part, figure, JSON.parse(curves.textContent));
  else filter.querySelector("button").hidden = true;
}
function overlay(part, figure, data) {
  const ticks = [...part.querySelectorAll("input[data-at]")];
  const svg = figure.querySelector("svg"), legend = figure.querySelector(".legend");
  const styles = new Map(); // by run the place of its style, kept while it is drawn
  const draw = () => {
    const what = figure.querySelector("input[name=curve]:checked").value;
    const chosen = ticks.filter((tick) => tick.checked).map((tick) => Number(tick.dataset.at));
    for (const at of [...styles.keys()]) if (!chosen.includes(at)) styles.delete(at);
    for (const at of chosen) if (!styles.has(at)) {
      const taken = new Set(styles.values());
      let free = 0;
      while (taken.has(free)) free++;
      styles.set(at, free);
    }
    const lines = chosen.map((at) => ({ at, name: data[at].name, style: styles.get(at), points: data[at][what] ?? [[], []] }));
    chart(svg, lines);
    legend.replaceChildren(...lines.map((line) => entry(line, ticks, draw)));
  };
  for (const tick of ticks) tick.addEventListener("change", draw);
  for (const choice of figure.querySelectorAll("input[name=curve]")) choice.addEventListener("change", draw);
  for (const button of part.querySelectorAll("button[data-do]")) button.addEventListener("click", () => {
    for (const tick of ticks) tick.checked = button.dataset.do === "shown" && !tick.closest("tr").hidden;
    draw();
  });
  const set = (tick) => tick.closest("tr").cells[1].textContent; // curves of other data sets are not to be compared
  const alike = ticks.filter((tick) => set(tick) === set(ticks[0])).slice(0, Number(figure.dataset.drawn));
  for (const tick of ticks) tick.checked = alike.includes(tick);
  new ResizeObserver(draw).observe(figure);
  figure.hidden = false;
}
function entry(line, ticks, draw) {
  const item = document.createElement("li"), button = document.createElement("button");
  button.type = "button";
  button.title = "Remove this curve";
  const mark = node("svg", { viewBox: "0 0 22 10", "aria-hidden": "true" });
  mark.append(node("path", { d: "M0 5H22", class: look(line.style) }));
  const known = line.points[1].filter((value) => value !== null);
  const last = known.length ? ` ${known[known.length - 1].toFixed(2)}` : " –";
  button.append(mark, line.name + last);
  button.addEventListener("click", () => {
    ticks.find((tick) => Number(tick.dataset.at) === line.at).checked = false;
    draw();
  });
  item.append(button);
  return item;
}
function chart(svg, lines) {
  const wide = Math.max(300, Math.round(svg.clientWidth || 860)), high = 320;
  const left = 44, right = wide - 12, top = 10, bottom = high - 34;
  svg.setAttribute("viewBox", `0 0 ${wide} ${high}`);
  svg.replaceChildren();
  const rounds = lines.flatMap((line) => line.points[0]);
  const values = lines.flatMap((line) => line.points[1]).filter((value) => value !== null);
  if (!values.length) {
    const none = node("text", { x: wide / 2, y: high / 2, class: "middle" });
    none.textContent = "No run is ticked, or those that are have no such figures.";
    svg.append(none);
    return;
  }
  const least = Math.min(...values), most = Math.max(...values), air = Math.max(0.5, 0.06 * (most - least));
  const low = Math.max(0, least - air), up = Math.min(100, most + air), end = Math.max(1, ...rounds);
  const x = (round) => left + (right - left) * round / end;
  const y = (value) => bottom - (bottom - top) * (value - low) / (up - low || 1);
  const label = (text, at) => { const made = node("text", at); made.textContent = text; svg.append(made); };
  for (const value of steps(low, up, 5)) {
    svg.append(node("path", { d: `M${left} ${y(value)}H${right}`, class: "grid" }));
    label(String(value), { x: left - 6, y: y(value) + 4, class: "end" });
  }
  for (const round of steps(0, end, 6)) if (Number.isInteger(round)) label(String(round), { x: x(round), y: bottom + 16, class: "middle" });
  svg.append(node("path", { d: `M${left} ${bottom}H${right}`, class: "axis" }));
  label("round", { x: right, y: high - 3, class: "end quiet" });
  for (const line of lines) {
    let d = "", pen = "M";
    line.points[0].forEach((round, k) => {
      const value = line.points[1][k];
      if (value === null) pen = "M";
      else { d += `${pen}${x(round).toFixed(1)} ${y(value).toFixed(1)}`; pen = "L"; }
    });
    d = d && line.points[0].length === 1 ? d + "h0.01" : d || "M0 0"; // a dot; nothing at all
    const path = node("path", { d, class: look(line.style) + (line.points[0].length > 1 ? "" : " lone") });
    const hint = node("title", {});
    hint.textContent = line.name;
    path.append(hint);
    svg.append(path);
  }
}
function look(style) { return `line c${style % 7} dash${Math.floor(style / 7) % 4}`; }
function steps(low, high, about) {
  const rough = (high - low) / about, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((each) => each >= rough);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + 1e-9; k++) found.push(Number((k * step).toFixed(10)));
  return found;
}
function node(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
