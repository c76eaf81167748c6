"use strict";

const part = (id) => document.getElementById(id);
let token = "";       // kept in this page alone
let facts = null;     // the answer of /model
let picture = null;   // the file that is shown
let point = null;     // {x, y}, shares of the picture's sides
let predicted = null; // the answer of /predict
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

// A line of the list: a name, a share in words, and a bar of it.
function line(name, share, colour, said = percent(share)) {
  const row = document.createElement("li");
  const label = document.createElement("span");
  const words = document.createElement("span");
  const bar = document.createElement("progress");
  label.className = "name";
  label.textContent = name;
  if (colour) {
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.backgroundColor = colour;
    label.prepend(swatch);
  }
  words.textContent = said;
  bar.max = 1;
  bar.value = share;
  bar.setAttribute("aria-hidden", "true"); // the number beside it says the same
  row.append(label, words, bar);
  return row;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const length = (metres) => `${metres.toFixed(2)} m`;

function set(element, numbers) {
  for (const [name, value] of Object.entries(numbers)) element.setAttribute(name, value);
  return element;
}

const colourOf = (name) => facts.colours[facts.classes.indexOf(name)];

// Lengths of runs from the text of COCO's tools: digits of 5 bits, lowest first, of differences to the length two before.
function lengths(text) {
  const found = [];
  for (let at = 0; at < text.length;) {
    let value = 0, shift = 0, digit;
    do {
      digit = text.charCodeAt(at++) - 48;
      value |= (digit & 31) << shift;
      shift += 5;
    } while (digit & 32);
    if (digit & 16) value |= -1 << shift;
    if (found.length > 2) value += found[found.length - 2];
    found.push(value);
  }
  return found;
}

// The pixels of objects in their colours, on a canvas of a million pixels at most; none where there are no such objects.
function tinted(objects, width, height) {
  if (!objects.length) return [];
  const step = Math.ceil(Math.sqrt(width * height / 1e6)), canvas = document.createElement("canvas");
  canvas.width = Math.ceil(width / step);
  canvas.height = Math.ceil(height / step);
  const context = canvas.getContext("2d"), pixels = context.createImageData(canvas.width, canvas.height);
  for (const { name, segmentation } of [...objects].reverse()) { // the surest on top
    const colour = colourOf(name).match(/\w\w/g).map((digits) => parseInt(digits, 16));
    let place = 0, inside = false;
    for (const length of lengths(segmentation.counts)) { // column by column
      for (const end = place + length; place < end; place += 1) {
        const x = Math.floor(place / height), y = place % height;
        if (inside && x % step === 0 && y % step === 0) {
          pixels.data.set([...colour, 130], 4 * (y / step * canvas.width + x / step));
        }
      }
      inside = !inside;
    }
  }
  context.putImageData(pixels, 0, 0);
  canvas.className = "tint";
  return [canvas];
}

// By task: what is asked for, what the list and the drawing are called, and how an answer is shown, which gives words.
const tasks = {
  classification: {
    query: { top: 5 }, title: "Classes", drawing: "",
    show({ classes }) {
      part("classes").replaceChildren(...classes.map(({ name, probability }) => line(name, probability)));
      return classes.length ? `${classes[0].name}, ${percent(classes[0].probability)}` : "";
    },
  },
  segmentation: {
    query: {}, title: "Shares of the picture", drawing: "mask",
    show({ shares, mask }) {
      part("classes").replaceChildren(...shares.map(({ name, share }) => line(name, share, colourOf(name))));
      part("mask").src = `data:image/png;base64,${mask}`;
      return shares.slice(0, 3).map(({ name, share }) => `${name} ${percent(share)}`).join(", ");
    },
  },
  detection: {
    query: { threshold: 0.05 }, title: "Objects", drawing: "boxes",
    show({ boxes, width, height }) {
      const least = Number(part("least").value), sure = boxes.filter(({ score }) => score >= least);
      part("least-value").textContent = least.toFixed(2);
      part("classes").replaceChildren(...sure.map(({ name, score }) => line(name, score, colourOf(name))));
      const frames = sure.map(({ name, score, box: [left, top, right, bottom] }) => {
        const frame = document.createElement("div"), label = document.createElement("span");
        frame.className = "box";
        Object.assign(frame.style, {
          borderColor: colourOf(name), left: `${100 * left / width}%`, top: `${100 * top / height}%`,
          width: `${100 * (right - left) / width}%`, height: `${100 * (bottom - top) / height}%`,
        });
        label.textContent = `${name} ${percent(score)}`;
        frame.append(label);
        return frame;
      });
      part("boxes").replaceChildren(...tinted(sure.filter(({ segmentation }) => segmentation), width, height), ...frames);
      const counts = new Map();
      for (const { name } of sure) counts.set(name, (counts.get(name) ?? 0) + 1);
      return [...counts].map(([name, count]) => `${count} ${name}`).join(", ") || "Nothing was found.";
    },
  },
  depth: {
    query: { drawing: true }, title: "Distances", drawing: "mask", called: "depths",
    show({ metres, drawing }) {
      const words = { least: "nearest", median: "in the middle", most: "farthest" };
      const lines = Object.entries(words).map(([key, name]) => line(name, metres[key] / metres.most, "", length(metres[key])));
      part("classes").replaceChildren(...lines);
      part("mask").src = `data:image/png;base64,${drawing}`;
      return `From ${length(metres.least)} to ${length(metres.most)}; bright is near.`;
    },
  },
  pose: {
    query: {}, title: "Joints", drawing: "boxes", called: "joints",
    show({ people, width, height }) {
      const least = Number(part("least").value), radius = Math.max(width, height) / 120;
      part("least-value").textContent = least.toFixed(2);
      const sure = people.map(({ joints }) => joints.map((joint) => joint.score >= least ? joint : null));
      const shown = sure.flat().filter(Boolean);
      part("classes").replaceChildren(...shown.map(({ name, score }) => line(name, score)));
      const drawing = set(part("boxes").querySelector("svg"), { viewBox: `0 0 ${width} ${height}` });
      const shape = (kind, numbers) => set(document.createElementNS(drawing.namespaceURI, kind), numbers);
      drawing.replaceChildren();
      for (const joints of sure) {
        for (const [from, to] of facts.bones.map((ends) => ends.map((end) => joints[end]))) {
          if (from && to) drawing.append(shape("line", { x1: from.x, y1: from.y, x2: to.x, y2: to.y, "stroke-width": radius / 2 }));
        }
        for (const joint of joints) {
          if (joint) drawing.append(shape("circle", { cx: joint.x, cy: joint.y, r: radius, "stroke-width": radius / 3 }));
        }
      }
      return `${shown.length} of ${people.length * facts.classes.length} joints are as sure as that.`;
    },
  },
};

// Shows the answer of /predict.
function tellAnswer() {
  const { drawing, show } = tasks[facts.task];
  part("status").textContent = show(predicted);
  part("mask").hidden = drawing !== "mask" || !part("drawn").checked;
  part("boxes").hidden = drawing !== "boxes" || !part("drawn").checked;
}

async function load() {
  try {
    facts = await ask("model");
  } catch (error) { fail(error); return; }
  part("token").hidden = true;
  settle();
  part("model").textContent = facts.model;
  const names = facts.classes ?? [], more = names.length > 12 ? ", …" : "";
  const kind = facts.task === "pose" ? "joints" : "classes";
  if (names.length) part("status").textContent = `It knows ${names.length} ${kind}: ${names.slice(0, 12).join(", ")}${more}`;
  document.title = `${facts.model} – srattn`;
  const { title, drawing, called } = tasks[facts.task];
  part("classes-title").textContent = title;
  part("drawn-row").hidden = !drawing;
  part("drawn-name").textContent = `Show the ${called ?? drawing}`;
  part("least-row").hidden = drawing !== "boxes";
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
  point = answer = predicted = null;
  part("mask").hidden = part("boxes").hidden = true;
  part("words").textContent = "";
  draw();
  URL.revokeObjectURL(part("image").src);
  part("image").src = URL.createObjectURL(file);
  part("image").alt = file.name;
  part("view").setAttribute("aria-label", `The picture ${file.name}`);
  part("status").textContent = "Asking the model…";
  part("error").hidden = true;
  try {
    const { answers } = await post("predict", tasks[facts.task].query);
    settle();
    predicted = answers[0];
    tellAnswer();
    part("result").hidden = false;
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
  const whole = (share) => `${Math.round(100 * within(share))} %`;
  const head = answer.head === null ? "mean of all heads" : `head ${answer.head}`;
  part("words").textContent =
    `Stage ${answer.stage}, ${head}: the point at ${whole(point.x)} from the left and ${whole(point.y)} from the top ` +
    `attends most to ${whole(across)} from the left and ${whole(down)} from the top.`;
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
part("drawn").addEventListener("change", () => { if (predicted) tellAnswer(); });
part("least").addEventListener("input", () => { if (predicted) tellAnswer(); });
part("image").addEventListener("error", () => {
  if (picture) part("words").textContent = "This browser cannot draw the picture; the model could read it if it has an answer.";
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
