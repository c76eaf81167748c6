// Runs src/srattn/explain/explain.js on a page's data without a browser: node viewer.js SCRIPT < DATA > WHAT IT DID.
// The document is a stand-in with what the script uses of it, and nothing else.
"use strict";
const fs = require("fs");
const vm = require("vm");

class Element {
  constructor() {
    Object.assign(this, { children: [], attributes: {}, dataset: {}, listeners: {}, value: "", textContent: "", hidden: false });
  }
  get parentElement() { return this.parent ?? (this.parent = new Element()); }
  append(...made) { for (const each of made) { each.parent = this; this.children.push(each); } }
  replaceChildren(...made) { this.children = []; this.append(...made); }
  setAttribute(name, value) { this.attributes[name] = value; }
  addEventListener(name, call) { this.listeners[name] = call; }
  send(name, event = {}) { this.listeners[name]({ target: this, preventDefault() {}, ...event }); }
  click() { this.send(this.listeners.click ? "click" : "change"); }
  querySelector(tag) {
    if (tag === "input") return this.children[0].children[0];
    return (this.found ??= {})[tag] ??= new Element();
  }
  getBoundingClientRect() { return { left: 0, top: 0, width: 100, height: 100 }; }
  getContext() {
    return {
      drawImage() {},
      getImageData: (x, y, w, h) => ({ data: new Uint8ClampedArray(4 * w * h).fill(128) }),
      createImageData: (w, h) => ({ data: new Uint8ClampedArray(4 * w * h) }),
      putImageData: (image) => { this.painted = image.data; },
    };
  }
}

const known = {};
const at = (id) => (known[id] ??= Object.assign(new Element(), { id }));
at("data").textContent = fs.readFileSync(0, "utf-8");
at("s-tint").value = "100";
const document = { getElementById: at, createElement: () => new Element(), createElementNS: () => new Element() };
class Image { set src(_) { this.onload(); } }
class Option extends Element { constructor(text, value) { super(); Object.assign(this, { text, value }); } }
const context = vm.createContext({ document, Image, Option, atob, Uint8Array, Float64Array, console });
vm.runInContext(fs.readFileSync(process.argv[2], "utf-8"), context, { timeout: 20000 });

const data = JSON.parse(at("data").textContent);
const table = Buffer.from(data.colours, "base64");
const levels = new Map();
for (let level = 255; level >= 0; level--) levels.set(table.subarray(3 * level, 3 * level + 3).join(), level);
const painted = () => {
  const found = [];
  const pixels = at("canvas").painted;
  for (let i = 0; i < pixels.length; i += 4) found.push(levels.get(pixels.slice(i, i + 3).join()) ?? -1);
  return found;
};
const slide = (name, value) => { at("s-" + name).value = value; at("s-" + name).send("input"); };
const done = [];
const note = (what) => done.push({ ...what, told: at("told").textContent, levels: painted(), marks: at("marks").children.length });
const views = at("views").children.map((label) => label.children[0]);

// Every view, stage, block and head, at a tapped point; each with a limit on its time.
const limited = (call) => { context.call = call; vm.runInContext("call()", context, { timeout: 20000 }); };
for (const view of views) {
  limited(() => view.send("change"));
  for (let stage = 1; stage <= data.strides.length; stage++) {
    slide("stage", stage);
    if (view.value === "attention" || view.value === "keys") {
      limited(() => at("stage").send("pointerdown", { clientX: 60, clientY: 30, pointerType: "touch" }));
    }
    for (let block = 1; block <= Number(at("s-block").max); block++) {
      slide("block", block);
      for (let head = 0; head <= Number(at("s-head").max); head++) {
        limited(() => slide("head", head));
        note({ view: view.value, stage, block, head });
      }
    }
  }
}
views[0].send("change");
slide("stage", data.strides.length);
for (const key of ["ArrowRight", "ArrowDown", "ArrowDown"]) at("stage").send("keydown", { key });
note({ view: "keyboard", hidden: at("viewer").hidden });
if (data.images.length > 1) { at("strip").children[1].click(); note({ view: "second", name: at("name").textContent }); }
process.stdout.write(JSON.stringify(done));
