"use strict";
// The viewer of `srattn explain`. Maps are computed here from the weights that the page carries.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const colours = bytes(data.colours);
  const state = { image: 0, view: "attention", stage: 0, block: 0, head: 0, target: 0, x: 0, y: 0, token: false };
  const decoded = new WeakMap();
  const unpack = (packed) => {
    if (!decoded.has(packed)) decoded.set(packed, bytes(packed.data));
    return decoded.get(packed);
  };
  const percent = (share) => (share >= 0.0995 ? Math.round(100 * share) : (100 * share).toPrecision(2)) + " %";
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  const image = () => data.images[state.image];
  const blocksOf = (stage) => image().blocks.filter((block) => block.stage === stage);
  const block = () => blocksOf(state.stage)[state.block];
  const supports = () => {
    let index = block().block;
    for (const each of data.depths.slice(0, state.stage)) index += each;
    return data.supports[image().height + "x" + image().width][index];
  };

  // The token of the chosen point in a block: row, column, and the row of the embedded table that stands for it.
  function query(of) {
    const row = Math.min(Math.floor(state.y / of.stride), of.grid[0] - 1);
    const column = Math.min(Math.floor(state.x / of.stride), of.grid[1] - 1);
    const columns = Math.ceil(of.grid[1] / of.step);
    const place = Math.floor(row / of.step) * columns + Math.floor(column / of.step);
    return { row, column, index: of.token && state.token ? 0 : place + (of.token ? 1 : 0) };
  }

  // Weights of the keys for the chosen point, which sum to one: of one head, or the mean of all.
  function weights() {
    const of = block(), table = unpack(of), rows = table.length / (of.heads * of.keys), found = new Float64Array(of.keys);
    const heads = state.head ? [state.head - 1] : [...Array(of.heads).keys()];
    for (const head of heads) {
      const start = (head * rows + query(of).index) * of.keys, row = table.subarray(start, start + of.keys);
      const sum = row.reduce((a, b) => a + b, 0) || 1;
      row.forEach((value, key) => { found[key] += value / sum / heads.length; });
    }
    return found;
  }

  // Each weight spread evenly over its box of pixels; boxes may end within a pixel.
  function painted(values, boxes) {
    const { width, height } = image(), heat = new Float64Array(width * height);
    values.forEach((value, key) => {
      const [top, left, bottom, right] = boxes.slice(4 * key, 4 * key + 4), area = (bottom - top) * (right - left);
      if (!(area > 0) || !value) return;
      for (let y = Math.floor(top); y < Math.min(Math.ceil(bottom), height); y++) {
        const tall = Math.min(y + 1, bottom) - Math.max(y, top);
        for (let x = Math.floor(left); x < Math.min(Math.ceil(right), width); x++) {
          heat[y * width + x] += (value / area) * tall * (Math.min(x + 1, right) - Math.max(x, left));
        }
      }
    });
    return heat;
  }

  // A small map on the whole image: each cell as it is, or bilinear between the middles of cells.
  function enlarged(packed, smooth, step) {
    const { width, height } = image(), table = unpack(packed), [rows, columns] = packed.grid;
    const heat = new Float64Array(width * height);
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      if (!smooth) {
        const row = Math.floor(step ? y / step : (y * rows) / height), column = Math.floor(step ? x / step : (x * columns) / width);
        heat[y * width + x] = table[Math.min(row, rows - 1) * columns + Math.min(column, columns - 1)];
        continue;
      }
      const v = Math.max(((y + 0.5) * rows) / height - 0.5, 0), u = Math.max(((x + 0.5) * columns) / width - 0.5, 0);
      const r = Math.min(Math.floor(v), rows - 1), c = Math.min(Math.floor(u), columns - 1);
      const below = Math.min(r + 1, rows - 1), beside = Math.min(c + 1, columns - 1), dv = v - r, du = u - c;
      heat[y * width + x] = (1 - dv) * ((1 - du) * table[r * columns + c] + du * table[r * columns + beside])
        + dv * ((1 - du) * table[below * columns + c] + du * table[below * columns + beside]);
    }
    return heat;
  }

  // -- drawing ------------------------------------------------------------------------------------------------------

  const canvas = at("canvas"), context = canvas.getContext("2d", { willReadFrequently: true });
  let ground = null;

  function load(then) {
    const picture = new Image(), wanted = state.image;
    picture.onload = () => {
      if (wanted !== state.image) return;
      canvas.width = image().width;
      canvas.height = image().height;
      context.drawImage(picture, 0, 0);
      ground = context.getImageData(0, 0, canvas.width, canvas.height).data;
      then();
    };
    picture.src = image().picture;
  }

  function draw(heat) {
    const tint = heat ? Number(at("s-tint").value) / 100 : 0, out = context.createImageData(canvas.width, canvas.height);
    const top = heat ? heat.reduce((a, b) => Math.max(a, b), 0) || 1 : 1;
    for (let i = 0; i < canvas.width * canvas.height; i++) {
      const [r, g, b] = ground.subarray(4 * i, 4 * i + 3), grey = 0.299 * r + 0.587 * g + 0.114 * b;
      const level = heat ? 3 * Math.round((255 * heat[i]) / top) : 0;
      for (let c = 0; c < 3; c++) {
        out.data[4 * i + c] = tint ? (1 - tint) * grey + tint * colours[level + c] : ground[4 * i + c];
      }
      out.data[4 * i + 3] = 255;
    }
    context.putImageData(out, 0, 0);
  }

  const marks = at("marks");
  function line(kind, attributes, colour, width) {
    const each = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [name, value] of Object.entries(attributes)) each.setAttribute(name, value);
    each.setAttribute("fill", "none");
    each.setAttribute("stroke", colour);
    each.setAttribute("stroke-width", width);
    each.setAttribute("vector-effect", "non-scaling-stroke");
    marks.append(each);
    return each;
  }
  function mark(kind, attributes, colour, width, dash) {
    line(kind, attributes, "#000", width + 2).setAttribute("stroke-opacity", "0.7"); // so that it stands out on any ground
    const each = line(kind, attributes, colour, width);
    if (dash) each.setAttribute("stroke-dasharray", dash);
  }
  const rectangle = ([top, left, bottom, right]) => ({ x: left, y: top, width: right - left, height: bottom - top });

  function ring() {
    const r = Math.max(image().width, image().height) / 40;
    mark("ellipse", { cx: state.x + 0.5, cy: state.y + 0.5, rx: r, ry: r }, "#2ee6d0", 2);
  }

  // -- what is said ------------------------------------------------------------------------------------------------

  const TELL = {
    attention() {
      const of = block(), values = weights(), best = values.reduce((a, b) => Math.max(a, b), 0);
      const { row, column } = query(of), boxes = data.layouts[of.layout];
      draw(painted(values, boxes));
      if (!(of.token && state.token)) {
        mark("rect", rectangle([row * of.stride, column * of.stride, (row + 1) * of.stride, (column + 1) * of.stride]), "#2ee6d0", 1.5);
        ring();
      }
      const who = of.token && state.token ? "The class token" : "Token " + (row + 1) + ", " + (column + 1) + " of " + of.grid.join(" × ");
      const near = of.step > 1 ? " The page has only some queries of this block; this is the nearest one before." : "";
      return who + " over " + of.keys + " keys: the strongest holds " + percent(best) + ", where even shares would be "
        + percent(1 / of.keys) + "." + near;
    },
    rollout() {
      draw(enlarged(image().rollout, false, data.strides[0]));
      return "What the last tokens are made from, followed back through the attention of all blocks.";
    },
    gradcam() {
      const cam = image().cams[state.target], packed = cam.stages[state.stage];
      draw(packed.top > 0 ? enlarged(packed, true) : null);
      return packed.top > 0
        ? "Stage " + (state.stage + 1) + ", a map of " + packed.grid.join(" × ") + ", for " + cam.name + "."
        : "Nothing in the map of stage " + (state.stage + 1) + " speaks for " + cam.name + ".";
    },
    field() {
      const packed = data.fields[state.stage];
      if (packed.size[0] !== image().height || packed.size[1] !== image().width) {
        draw(null);
        return "Measured on images of " + packed.size[1] + " × " + packed.size[0] + " pixels, not on one of this size.";
      }
      draw(enlarged(packed, false));
      return "The centre unit of stage " + (state.stage + 1) + ": " + percent(packed.share)
        + " of all pixels move it by more than 4.55 % of what the strongest does.";
    },
    keys() {
      const groups = supports(), of = groups[Math.min(state.head, groups.length - 1)], [down, along] = of.stride;
      const count = of.tokens.length / 4, inside = [];
      const row = Math.min(Math.floor(state.y / down), of.grid[0] - 1), column = Math.min(Math.floor(state.x / along), of.grid[1] - 1);
      const near = (key) => {
        const [top, left, bottom, right] = of.tokens.slice(4 * key, 4 * key + 4);
        return [top * down, left * along, Math.min(bottom * down, image().height), Math.min(right * along, image().width)];
      };
      for (let key = 0; key < count; key++) {
        const [top, left, bottom, right] = of.tokens.slice(4 * key, 4 * key + 4);
        if (row >= top && row < bottom && column >= left && column < right) inside.push(key);
      }
      draw(null);
      let lattice = "";
      for (let key = 0; key < count; key++) {
        const [top, left, bottom, right] = near(key);
        lattice += "M" + left + " " + top + "H" + right + "V" + bottom + "H" + left + "Z";
      }
      line("path", { d: lattice }, "#fff", 0.75).setAttribute("stroke-opacity", "0.5");
      for (const key of inside) {
        mark("rect", rectangle(of.pixels.slice(4 * key, 4 * key + 4)), "#ffb454", 2, "5 4");
        mark("rect", rectangle(near(key)), "#2ee6d0", 2);
      }
      ring();
      const many = of.grid.join(" × ") + " tokens become " + (of.keys[0] === 1 ? count : of.keys.join(" × ")) + " keys. ";
      const lost = of.unseen ? " " + of.unseen + " pixels reach no key." : "";
      if (!inside.length) return many + "The token under the point reaches none of them." + lost;
      const [top, left, bottom, right] = of.tokens.slice(4 * inside[0], 4 * inside[0] + 4);
      const [above, before, below, after] = of.pixels.slice(4 * inside[0], 4 * inside[0] + 4);
      const which = inside.length === 1 ? "one key, made from " : inside.length + " keys. The first is made from ";
      return many + "The token under the point is part of " + which + (bottom - top) + " × " + (right - left)
        + " tokens, and these by the embeddings from " + (below - above) + " × " + (after - before) + " pixels (dashed)." + lost;
    },
  };

  // -- controls ----------------------------------------------------------------------------------------------------

  const VIEWS = [["attention", "Attention"], ["rollout", "Rollout"], ["gradcam", "Grad-CAM"], ["field", "Receptive field"], ["keys", "Keys"]];
  const shownIn = { stage: "attention gradcam field keys", block: "attention keys", head: "attention keys", class: "gradcam" };

  function slide(name, low, high, value, text) {
    const input = at("s-" + name);
    input.min = low;
    input.max = high;
    input.value = value;
    input.disabled = low === high;
    input.setAttribute("aria-valuetext", text);
    input.parentElement.querySelector("output").textContent = text;
    at("row-" + name).hidden = low === high || !shownIn[name].split(" ").includes(state.view);
  }

  function update() {
    const here = blocksOf(state.stage);
    state.block = clamp(state.block, 0, here.length - 1);
    const of = here[state.block], stages = data.strides.length;
    slide("stage", 1, stages, state.stage + 1, state.stage + 1 + " of " + stages);
    if (state.view === "keys") {
      const groups = supports();
      state.head = clamp(state.head, 0, groups.length - 1);
      slide("head", 0, groups.length - 1, state.head, groups[state.head].keys.join(" × ") + " keys");
      at("row-head").querySelector("label").textContent = "Ratio";
    } else {
      state.head = clamp(state.head, 0, of.heads === 1 ? 0 : of.heads);
      slide("head", 0, of.heads === 1 ? 0 : of.heads, state.head, state.head ? state.head + " of " + of.heads : "mean of " + of.of);
      at("row-head").querySelector("label").textContent = "Head";
    }
    slide("block", 1, here.length, state.block + 1, of.block + 1 + " of " + (here[here.length - 1].block + 1));
    at("row-class").hidden = state.view !== "gradcam";
    at("s-tint").parentElement.hidden = state.view === "keys";
    at("s-tint").parentElement.querySelector("output").textContent = at("s-tint").value + " %";
    at("sliders").hidden = false;
    at("points-box").hidden = !["attention", "keys"].includes(state.view);
    for (const button of at("points").children) {
      button.hidden = button.dataset.token === "1" && !(state.view === "attention" && of.token);
      const chosen = button.dataset.token === "1" ? state.token : !state.token && state.x === Number(button.dataset.x) && state.y === Number(button.dataset.y);
      button.setAttribute("aria-pressed", String(chosen));
    }
    marks.setAttribute("viewBox", "0 0 " + image().width + " " + image().height);
    marks.replaceChildren();
    at("told").textContent = TELL[state.view]();
  }

  function choose(x, y) {
    state.x = clamp(Math.floor(x), 0, image().width - 1);
    state.y = clamp(Math.floor(y), 0, image().height - 1);
    state.token = false;
    if (!["attention", "keys"].includes(state.view)) at("views").querySelector("input").click();
    else update();
  }

  function button(parent, text, press) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.addEventListener("click", press);
    parent.append(made);
    return made;
  }

  function open(index) {
    state.image = index;
    const { name, points, answers, cams, blocks } = image();
    [...at("strip").children].forEach((each, i) => each.setAttribute("aria-pressed", String(i === index)));
    at("name").textContent = name;
    at("points").replaceChildren();
    for (const [x, y, label] of points) {
      const made = button(at("points"), label + " (" + x + ", " + y + ")", () => choose(x, y));
      Object.assign(made.dataset, { x, y });
    }
    if (blocks.some((each) => each.token)) {
      button(at("points"), "class token", () => { state.token = true; update(); }).dataset.token = "1";
    }
    at("answers").replaceChildren();
    for (const [label, share] of answers) {
      const line = document.createElement("li");
      for (const text of [label, percent(share)]) line.append(Object.assign(document.createElement("span"), { textContent: text }));
      at("answers").append(line);
    }
    at("answers-box").hidden = !answers.length;
    at("s-class").replaceChildren(...cams.map((cam, i) => new Option(cam.name, i)));
    state.target = 0;
    [state.x, state.y] = points[points.length - 1];
    state.token = false;
    load(update);
  }

  for (const [key, label] of VIEWS) {
    if (key === "gradcam" && !data.images.some((each) => each.cams.length)) continue;
    const made = document.createElement("label"), input = document.createElement("input"), text = document.createElement("span");
    Object.assign(input, { type: "radio", name: "view", value: key, checked: key === state.view });
    input.addEventListener("change", () => { state.view = key; state.head = 0; update(); });
    text.textContent = label;
    made.append(input, text);
    at("views").append(made);
  }
  for (const name of ["stage", "block", "head"]) {
    at("s-" + name).addEventListener("input", (event) => {
      state[name] = Number(event.target.value) - (name === "head" ? 0 : 1);
      update();
    });
  }
  at("s-tint").addEventListener("input", update);
  at("s-class").addEventListener("change", (event) => { state.target = Number(event.target.value); update(); });

  const stage = at("stage");
  let held = false;
  const touched = (event) => {
    const box = canvas.getBoundingClientRect();
    choose(((event.clientX - box.left) / box.width) * image().width, ((event.clientY - box.top) / box.height) * image().height);
  };
  stage.addEventListener("pointerdown", (event) => { held = event.pointerType === "mouse"; touched(event); });
  stage.addEventListener("pointermove", (event) => { if (held && event.buttons) touched(event); });
  stage.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const step = data.strides[state.stage];
    choose(state.x + move[0] * step, state.y + move[1] * step);
  });

  data.images.forEach((each, index) => {
    const made = button(at("strip"), "", () => open(index));
    made.append(Object.assign(document.createElement("img"), { src: each.picture, alt: each.name }));
  });
  at("strip").hidden = data.images.length < 2;
  state.stage = data.strides.length - 1;
  state.block = blocksOf(state.stage).length - 1;
  at("viewer").hidden = false;
  open(0);
})();
