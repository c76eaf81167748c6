"use strict";

const part = (id) => document.getElementById(id);
let token = "";       // kept in this page alone
let facts = null;     // the answer of /model
let picture = null;   // the file that is shown
let point = null;     // {x, y}, shares of the picture's sides
let answer = null;    // the answer of /explain
let asked = { predict: null, explain: null };

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response.json();
  let words = `the service answered ${response.status}`;
  try { words = (await response.json()).error || words; } catch { /* not from the service itself */ }
  const error = new Error(words);
  error.status = response.status;
  throw error;
}

// Posts the picture; an earlier question of the same kind is given up.
function post(kind, query) {
  asked[kind]?.abort();
  asked[kind] = new AbortController();
  return ask(`${kind}?${new URLSearchParams(query)}`, {
    method: "POST", body: picture, headers: { "Content-Type": "application/octet-stream" }, signal: asked[kind].signal,
  });
}

function fail(error) {
  if (error.name === "AbortError") return;
  part("token").hidden = error.status !== 401;
  part("status").textContent = "";
  const words = error instanceof TypeError ? "the service cannot be reached" : error.message;
  part("error").textContent = error.status === 401 ? "" : words;
  part("error").hidden = error.status === 401;
}

function settle() { part("error").hidden = true; part("status").textContent = ""; }

// How an answer is shown, by task.
const show = {
  classification(found) {
    part("classes").replaceChildren(...found.classes.map(({ name, probability }) => {
      const row = document.createElement("li");
      const label = document.createElement("span");
      const share = document.createElement("span");
      const bar = document.createElement("progress");
      label.className = "name";
      label.textContent = name;
      share.textContent = `${(100 * probability).toFixed(1)} %`;
      bar.max = 1;
      bar.value = probability;
      bar.setAttribute("aria-hidden", "true"); // the number beside it says the same
      row.append(label, share, bar);
      return row;
    }));
  },
};

async function load() {
  try {
    facts = await ask("model");
  } catch (error) { fail(error); return; }
  part("token").hidden = true;
  settle();
  part("model").textContent = facts.model;
  const names = facts.classes ?? [], more = names.length > 12 ? ", …" : "";
  if (names.length) part("status").textContent = `It knows ${names.length} classes: ${names.slice(0, 12).join(", ")}${more}`;
  document.title = `${facts.model} – srattn`;
  const stages = facts.stages.map(({ stage, grid }) => new Option(`${stage} (${grid.join(" × ")})`, stage));
  part("stage").replaceChildren(...stages);
  part("explain").hidden = !stages.length;
  part("view").classList.toggle("points", stages.length > 0);
  part("stage").value = String(stages.length);
  listHeads();
}

function listHeads() {
  const found = facts.stages[Number(part("stage").value) - 1];
  if (!found) return;
  const heads = Array.from({ length: found.heads }, (_, index) => new Option(String(index + 1), index + 1));
  const before = part("head").value;
  part("head").replaceChildren(new Option("mean of all", ""), ...heads);
  part("head").value = Number(before) <= found.heads ? before : "";
}

async function open(file) {
  if (!file) return;
  if (!facts) await load();
  if (!facts) return;
  picture = file;
  point = answer = null;
  part("words").textContent = "";
  draw();
  URL.revokeObjectURL(part("image").src);
  part("image").src = URL.createObjectURL(file);
  part("image").alt = file.name;
  part("view").setAttribute("aria-label", `The picture ${file.name}`);
  part("status").textContent = "Asking the model…";
  part("error").hidden = true;
  try {
    const { task, answers } = await post("predict", { top: 5 });
    settle();
    show[task](answers[0]);
    part("result").hidden = false;
    const best = answers[0].classes?.[0];
    if (best) part("status").textContent = `${best.name}, ${(100 * best.probability).toFixed(1)} %`;
  } catch (error) {
    if (error.name !== "AbortError") part("result").hidden = true;
    fail(error);
  }
}

async function explain() {
  if (!picture || !point || !facts.stages.length) return;
  const query = { x: point.x, y: point.y, stage: part("stage").value };
  if (part("head").value) query.head = part("head").value;
  draw();
  try {
    answer = await post("explain", query);
    part("error").hidden = true;
    tell();
    draw();
  } catch (error) {
    if (error.name !== "AbortError") { answer = null; part("words").textContent = ""; draw(); }
    fail(error);
  }
}

// In words what the map shows.
function tell() {
  const most = Math.max(...answer.weights.flat());
  const row = answer.weights.findIndex((line) => line.includes(most));
  const column = answer.weights[row].indexOf(most);
  const [left, top, right, bottom] = answer.box;
  const across = left + (right - left) * (column + 0.5) / answer.grid[1];
  const down = top + (bottom - top) * (row + 0.5) / answer.grid[0];
  const percent = (share) => `${Math.round(100 * Math.min(1, Math.max(0, share)))} %`;
  const head = answer.head === null ? "mean of all heads" : `head ${answer.head}`;
  part("words").textContent =
    `Stage ${answer.stage}, ${head}: the point at ${percent(point.x)} from the left and ${percent(point.y)} from the top ` +
    `attends most to ${percent(across)} from the left and ${percent(down)} from the top.`;
}

function draw() {
  const canvas = part("map"), dot = part("dot"), visible = part("shown").checked;
  dot.hidden = !point;
  if (point) { dot.style.left = `${100 * point.x}%`; dot.style.top = `${100 * point.y}%`; }
  canvas.hidden = !answer || !visible;
  if (canvas.hidden) return;
  const [rows, columns] = answer.grid, [left, top, right, bottom] = answer.box;
  const most = Math.max(...answer.weights.flat()) || 1;
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), pixels = context.createImageData(columns, rows);
  answer.weights.flat().forEach((weight, index) => {
    const share = weight / most;
    // From a dark veil to a light orange one, through both of which the picture is seen.
    pixels.data.set([255 * share, 150 * share, 0, 165 - 65 * share], 4 * index);
  });
  context.putImageData(pixels, 0, 0);
  Object.assign(canvas.style, {
    left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`,
  });
}

const within = (share) => Math.min(1, Math.max(0, share));

part("view").addEventListener("click", (event) => {
  const box = part("image").getBoundingClientRect();
  point = { x: within((event.clientX - box.left) / box.width), y: within((event.clientY - box.top) / box.height) };
  explain();
});

part("view").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step || !picture) return;
  event.preventDefault();
  const size = event.shiftKey ? 0.1 : 0.02;
  const from = point ?? { x: 0.5, y: 0.5 };
  point = { x: within(from.x + size * step[0]), y: within(from.y + size * step[1]) };
  explain();
});

part("file").addEventListener("change", (event) => open(event.target.files[0]));
part("stage").addEventListener("change", () => { listHeads(); explain(); });
part("head").addEventListener("change", explain);
part("shown").addEventListener("change", draw);
part("image").addEventListener("error", () => {
  if (picture) part("words").textContent = "This browser cannot draw the picture; the model could read it if it has classes.";
});

part("token").addEventListener("submit", (event) => {
  event.preventDefault();
  token = part("token-text").value.trim();
  load().then(() => { if (facts && picture) open(picture); });
});

// The whole page takes a dropped picture, so that a miss does not leave the page.
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    part("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") open(event.dataTransfer.files[0]);
  });
}

load();
