"use strict";
// Sort, filter, choose columns; the state is in the address, so that what is seen can be sent to someone else.
const state = new URLSearchParams();
const scores = [...document.querySelectorAll("table.scores")];
const made = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// Of long tables the first rows are laid out, so that sorting answers at once; a button shows all.
const MOST_ROWS = 100;
const whole = new Set();
const limit = (table) => {
  let left = whole.has(table) ? Infinity : MOST_ROWS;
  for (const row of table.tBodies[0].rows) {
    if (!row.hidden) left -= 1;
    row.classList.toggle("beyond", left < 0);
  }
  const more = document.querySelector(`.tools[data-block="${table.dataset.block}"] .more`);
  if (more) more.hidden = left >= 0;
};

const value = (row, index) => row.cells[index].dataset.value;

// Numbers highest first, names in order of the alphabet; gaps stay last, and below all what others published: no rank.
const sort = (table, index, order) => {
  const heads = [...table.tHead.rows[0].cells];
  const numbers = heads[index].dataset.sort === "number";
  const sign = order === "ascending" ? 1 : -1;
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => ({ row, key: numbers ? parseFloat(value(row, index)) : value(row, index) }));
  keyed.sort((a, b) => {
    const [below, above] = [a, b].map(({ row }) => row.matches(".published"));
    if (below !== above) return below - above;
    if (!numbers) return sign * a.key.localeCompare(b.key);
    if (Number.isNaN(a.key) || Number.isNaN(b.key)) return Number.isNaN(a.key) - Number.isNaN(b.key);
    return sign * (a.key - b.key);
  });
  heads.forEach((other) => other.removeAttribute("aria-sort"));
  heads[index].setAttribute("aria-sort", order);
  body.replaceChildren(...keyed.map(({ row }) => row));
  limit(table);
};

// As the page came.
const first = new Map(scores.map((table) => [table, [...table.tBodies[0].rows]]));
const unsort = (table) => {
  table.tHead.querySelector("[aria-sort]")?.removeAttribute("aria-sort");
  table.tBodies[0].replaceChildren(...first.get(table));
  limit(table);
};

const show = (table, hidden) => {
  for (const row of table.rows) [...row.cells].forEach((cell, index) => { cell.hidden = hidden.has(index); });
};

const matches = (text, words) => words.every((word) => text.includes(word));
const filter = (query) => {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  for (const table of scores) {
    for (const row of table.tBodies[0].rows) row.hidden = !matches(row.cells[0].textContent.toLowerCase(), words);
    limit(table);
  }
  for (const run of document.querySelectorAll(".run")) {
    run.hidden = !matches(run.firstElementChild.textContent.toLowerCase(), words);
  }
};

const save = () => {
  for (const [key, text] of [...state]) if (!text) state.delete(key);
  history.replaceState(null, "", `#${state}`);
};

const reveal = (name) => {
  const target = name && document.getElementById(name);
  if (!target) return;
  if (target.matches("details")) target.open = true;
  target.scrollIntoView();
  (target.querySelector("summary") ?? target).focus({ preventScroll: true });  // headings have tabindex -1 for this
};

const hiddenOf = (number) => new Set((state.get(`hide${number}`) ?? "").split(".").filter(Boolean).map(Number));

// What the address says, all of it; one that is a plain anchor is a place on the page.
const restore = () => {
  const text = location.hash.slice(1);
  for (const key of [...state.keys()]) state.delete(key);
  for (const [key, word] of new URLSearchParams(!text || text.includes("=") ? text : `at=${text}`)) state.set(key, word);
  search.value = state.get("q") ?? "";
  filter(search.value);
  for (const table of scores) {
    const number = table.dataset.block;
    const hidden = hiddenOf(number);
    show(table, hidden);
    for (const box of document.querySelectorAll(`[data-block="${number}"] input[data-column]`)) {
      box.checked = !hidden.has(Number(box.dataset.column));
    }
    const [, index, order] = /^(\d+)([ad])$/.exec(state.get(`sort${number}`) ?? "") ?? [];
    if (index < table.tHead.rows[0].cells.length) sort(table, Number(index), order === "a" ? "ascending" : "descending");
    else unsort(table);
  }
  reveal(state.get("at"));
};

// A table as it is seen: its columns, its order, its rows.
const seen = (table) => {
  const rows = [...table.rows].filter((row) => !row.hidden);
  return rows.map((row) => [...row.cells].filter((cell) => !cell.hidden).map((cell) => {
    if (cell.tagName === "TH") return cell.dataset.name ?? cell.dataset.value ?? cell.querySelector(".title").textContent;
    const copy = cell.cloneNode(true);
    copy.querySelector(".runs")?.remove();
    return copy.textContent.trim();
  }));
};
const exact = (table) => {
  const [head, ...rows] = [...table.rows].filter((row) => !row.hidden);
  const lines = [["method", "protocol", "mean", "low", "high", "n", "source"]];
  const titles = [...head.cells].map((cell) => cell.querySelector(".title").textContent);
  for (const row of rows) {
    const { name = value(row, 0), source = "" } = row.cells[0].dataset;
    [...row.cells].forEach((cell, index) => {
      const { value: mean, low = "", high = "", n = "" } = cell.dataset;
      if (index && !cell.hidden && mean && (low || source)) lines.push([name, titles[index], mean, low, high, n, source]);
    });
  }
  return lines;
};
// Of the published numbers that are seen.
const sources = (table) => {
  const found = [...table.rows].map((row) => !row.hidden && row.cells[0].dataset).filter((data) => data.source);
  return found.map(({ value: name, source }) => `Published, not measured here and not ranked: ${name}: ${source}.`);
};
const TEX = {
  ...Object.fromEntries([..."#$%&_{}"].map((letter) => [letter, `\\${letter}`])),
  "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}",
  ">": "\\textgreater{}", "|": "\\textbar{}", '"': "\\textquotedbl{}", "±": "$\\pm$", "†": "$^{\\dagger}$",
};
const tex = (text) => text.replace(/[\\~^<>|"±†#$%&_{}]/g, (found) => TEX[found]);
const mark = (text) => text.replace(/[\\`*[\]<>|#~&_]/g, "\\$&");
const COPIES = {
  Markdown: (table) => {
    const rows = seen(table).map((row) => `| ${row.map(mark).join(" | ")} |`);
    const below = sources(table).flatMap((line) => ["", mark(line)]);
    return [rows[0], `|---${"|---:".repeat(seen(table)[0].length - 1)}|`, ...rows.slice(1), ...below].join("\n");
  },
  CSV: (table) => exact(table).map((row) => row.map((text) => {
    const safe = /^[=+\-@]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }).join(",")).join("\n"),
  LaTeX: (table) => {
    const rows = seen(table).map((row) => row.map(tex).join(" & "));
    const below = sources(table).map((line) => `\\par\\smallskip{\\footnotesize ${tex(line)}\\par}`);
    return [`\\begin{tabular}{l${"r".repeat(seen(table)[0].length - 1)}}`, "\\toprule", `${rows[0]} \\\\`, "\\midrule",
      ...rows.slice(1).map((row) => `${row} \\\\`), "\\bottomrule", "\\end{tabular}", ...below].join("\n");
  },
};
const copy = async (text, tools, name) => {
  tools.querySelector("textarea")?.remove();
  const status = tools.querySelector("[role=status]");
  try {
    await navigator.clipboard.writeText(text);
    status.textContent = `Copied as ${name}.`;
  } catch {  // no clipboard here: the text itself, selected
    const area = made("textarea", { value: text, readOnly: true, ariaLabel: name });
    tools.append(area);
    area.select();
    status.textContent = "Press Ctrl+C to copy.";
  }
};

const search = made("input", { type: "search", placeholder: "e.g. mae 0.75" });
document.getElementById("filter").append(made("label", {}, "Filter methods and runs ", search));
search.addEventListener("input", () => {
  filter(search.value);
  state.set("q", search.value);
  save();
});

for (const table of scores) {
  const number = table.dataset.block;
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => head.querySelector("button").addEventListener("click", () => {
    const first = head.dataset.sort === "number" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? (first === "descending" ? "ascending" : "descending") : first;
    sort(table, index, order);
    state.set(`sort${number}`, index + order[0]);
    save();
  }));
  const tools = document.querySelector(`.tools[data-block="${number}"]`);
  const boxes = heads.slice(1).map((head, place) => {
    const box = made("input", { type: "checkbox", checked: true });
    box.dataset.column = place + 1;
    box.addEventListener("change", () => {
      const hidden = hiddenOf(number);
      if (box.checked) hidden.delete(place + 1);
      else hidden.add(place + 1);
      show(table, hidden);
      state.set(`hide${number}`, [...hidden].join("."));
      save();
    });
    return made("label", {}, box, ` ${head.querySelector(".title").textContent}`);
  });
  const legend = made("legend", { textContent: "Columns", hidden: true });
  tools.append(made("details", {}, made("summary", { textContent: "Columns" }), made("fieldset", {}, legend, ...boxes)));
  for (const [name, made_of] of Object.entries(COPIES)) {
    const button = made("button", { type: "button", textContent: `Copy ${name}` });
    button.addEventListener("click", () => copy(made_of(table), tools, name));
    tools.append(button);
  }
  const more = made("button", { type: "button", className: "more", textContent: `Show all ${table.tBodies[0].rows.length} rows` });
  more.addEventListener("click", () => {
    whole.add(table);
    limit(table);
  });
  tools.append(more);
  const status = made("span");
  status.setAttribute("role", "status");
  tools.append(status);
}

// Pairs of a protocol: row less column in points.
const SIGNS = { b: ["+", "-"], t: ["=", "="], u: ["?", "?"], o: ["", ""] };  // o: one seed, of which nothing is concluded
const points = (hundredths) => (hundredths / 100).toFixed(2);
const signed = (hundredths) => (hundredths > 0 ? "+" : "") + points(hundredths);
const VERDICTS = { "+": "better", "-": "worse", "=": "tie", "?": "undecided", "": "one seed" };
const byPlaces = ({ pairs }) => {  // of both methods -> what is known of the first less the second
  const found = new Map();
  for (const [a, b, difference, low, high, p, verdict] of pairs) {
    const [ahead, behind] = SIGNS[verdict];
    found.set(`${a} ${b}`, { difference, low, high, p, sign: ahead });
    found.set(`${b} ${a}`, { difference: -difference, low: -high, high: -low, p, sign: behind });
  }
  return found;
};
const heading = (text, scope, title = "") => {
  const cell = made("th", { title }, made("bdi", { textContent: text }));
  cell.scope = scope;
  return cell;
};
const grid = (caption, heads, rows) => {
  const titles = made("thead", {}, made("tr", {}, ...heads));
  return made("table", { className: "grid" }, made("caption", { textContent: caption }), titles, made("tbody", {}, ...rows));
};
const interval = (pair) => `[${signed(pair.low)}, ${signed(pair.high)}]`;
const shaded = (cell, pair) => {
  if (pair.sign === "+" || pair.sign === "-") cell.classList.add(pair.sign === "+" ? "p" : "n");
  cell.style.setProperty("--p", Math.min(1, 0.3 + Math.abs(pair.difference) / 2000));
  return cell;
};
// All pairs, columns by the numbers of the rows.
const matrix = (names, found) => {
  const rows = names.map((name, a) => made("tr", {}, heading(`${a + 1} ${name}`, "row"), ...names.map((other, b) => {
    const pair = found.get(`${a} ${b}`);
    if (!pair) return made("td", { textContent: a === b ? "" : "-" });
    const only = pair.sign ? "" : " (test images only)";
    const title = `${name} less ${other}: ${signed(pair.difference)} points ${interval(pair)}${only}, p ${pair.p}`;
    return shaded(made("td", { textContent: `${(pair.difference / 100).toFixed(1)} ${pair.sign}`.trim(), title }), pair);
  })));
  const heads = names.map((name, index) => heading(`${index + 1}`, "col", name));
  return grid("Row less column, in points", [heading("method", "col"), ...heads], rows);
};
// One method less each other.
const against = (names, found, own) => {
  const rows = names.flatMap((name, other) => {
    const pair = found.get(`${own} ${other}`);
    if (!pair) return [];
    const texts = [signed(pair.difference), interval(pair), `${pair.p}`];
    const verdict = made("td", { textContent: VERDICTS[pair.sign], className: "verdict" });
    return [made("tr", {}, heading(name, "row"), ...texts.map((textContent) => made("td", { textContent })), shaded(verdict, pair))];
  });
  const heads = [`${names[own]} less`, "points", "95 %", "p", "verdict"].map((text) => heading(text, "col"));
  return grid(`${names[own]} less each other method, in points`, heads, rows);
};
for (const place of document.querySelectorAll(".pairs")) {
  const protocols = JSON.parse(place.querySelector("script").textContent);
  const options = protocols.map(({ title }, index) => made("option", { textContent: title, value: index }));
  const choice = made("select", {}, ...options);
  const one = made("select");
  const [all, single] = ["matrix", "one"].map((name) => made("div", { className: `scroll ${name}`, tabIndex: 0, ariaLabel: "Pairs" }));
  for (const frame of [all, single]) frame.setAttribute("role", "region");
  const draw = () => {
    const { names, pairs } = protocols[choice.value];
    const found = byPlaces({ pairs });
    const wanted = Math.max(0, names.indexOf(one.value));
    one.replaceChildren(...names.map((name, index) => made("option", { textContent: name, value: name, selected: index === wanted })));
    all.replaceChildren(matrix(names, found));
    single.replaceChildren(against(names, found, wanted));
  };
  for (const select of [choice, one]) select.addEventListener("change", draw);
  place.append(made("p", {}, made("label", {}, "Protocol ", choice), made("label", {}, "Method ", one)), all, single);
  draw();
}

// Links within the page keep the rest of the address.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#"]');
  if (!link) return;
  event.preventDefault();
  state.set("at", link.getAttribute("href").slice(1));
  save();
  reveal(state.get("at"));
});
window.addEventListener("hashchange", restore);
window.addEventListener("beforeprint", () => document.querySelectorAll("details.run").forEach((run) => { run.open = true; }));

// The runs' sections, where they are many, come compressed.
const unpack = async () => {
  const place = document.querySelector("#sections");
  if (!place) return;
  const bytes = Uint8Array.from(atob(place.querySelector("script").textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  place.innerHTML = await new Response(stream).text();
};
unpack().then(() => {
  restore();
  document.documentElement.dataset.ready = "";
});
