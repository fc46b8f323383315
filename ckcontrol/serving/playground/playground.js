// The playground: a question, passages and the dial in; three answers, their tokens and drafts out.
//
// Knows the page and the server's OpenAI endpoints, and asks nobody else. Text of models, passages and errors becomes
// text nodes and nothing else: no markup is ever parsed, so none of it can execute.
"use strict";

const MIDDLE = 0.5, SATURATION = 3, STEPS = 4; // the last two as in views/palette.py
const DIALS = ["dial", "ck-plug", "cad", "ck-plug-repo"]; // where the server does not say which methods take alpha
const METHODS = {
  dial: "Writes whole answers and gives the one that surprises both streams least; it arrives in one piece.",
  "ck-plug": "Acts only at tokens where the passages confuse the model.",
  "ck-plug-repo": "As in CK-PLUG's published code.",
  cad: "Acts at every token: what the passages changed is amplified or damped.",
  grd: "Chooses by itself between two whole answers; they arrive in one piece.",
  off: "The model as it is: plain RAG.",
};
const DRAFTS = { unmodified: "The model as it is", memory: "Memory", context: "The passages, amplified" };
const ARMS = [
  { id: "chosen", title: "Your setting" },
  { id: "plain", title: "Plain RAG", note: "The passages in the prompt, the model as it is." },
  { id: "closed", title: "Closed book", note: "No passages: what the model remembers." },
];
const EXAMPLE = {
  question: "Who painted The Starry Night?",
  passages: ["The Starry Night was painted by Claude Monet in the summer of 1889. The canvas shows a village under a swirling night sky."],
};

const $ = (id) => document.getElementById(id);
const model = { name: "", methods: Object.keys(METHODS), dials: DIALS, retrieve: null };
let passages = []; // {text, on, score, source}
const kept = new Map(); // answers at temperature 0, by request: greedy decoding gives the same again
let visited = new Map(), visitedFor = ""; // alpha to answer, of the question and passages that stand there
let asking = null; // AbortController of the answers under way
let flipAt = null;

/** An element; strings among its children become text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}
function drawn(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}
const signed = (x, digits = 2) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
const percent = (logp) => (100 * Math.exp(logp)).toPrecision(2).replace(/e-\d+$/, "") && share(Math.exp(logp));
function share(p) { return p < 0.001 ? "under 0.1 %" : `${(100 * p).toFixed(p < 0.1 ? 1 : 0)} %`; }
/** Text with what reorders or hides it made visible. */
const shown = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
  (c) => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);

// --- errors: a sentence beside the field ---

const FIELDS = [
  [/retrieve|index/i, "retrieve"], [/alpha|method|adaptive/i, "dial"], [/passage/i, "passages"],
  [/message|prompt|characters|question/i, "question"], [/API key/i, "key"],
];
function fail(field, text) {
  if (field === "key") $("key-row").hidden = false;
  $(`${field}-error`).textContent = shown(text);
  const input = $({ dial: "alpha" }[field] ?? field);
  if (input?.matches("input, textarea")) input.setAttribute("aria-invalid", "true");
}
function clear(...fields) {
  for (const field of fields.length ? fields : ["key", "question", "retrieve", "passages", "dial", "ask"]) {
    $(`${field}-error`).textContent = "";
    $({ dial: "alpha" }[field] ?? field)?.removeAttribute("aria-invalid");
  }
}
const fieldOf = (error) => error.status === 401 ? "key"
  : (error.status === 400 && FIELDS.find(([pattern]) => pattern.test(error.message))?.[1]) || "ask";

// --- the server ---

class Refused extends Error {
  constructor(message, status) { super(message); this.status = status; }
}
async function send(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  let reply;
  try {
    reply = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server cannot be reached. Is it still running?", 0);
  }
  if (reply.ok) return reply;
  const told = await reply.json().catch(() => null);
  throw new Refused(told?.error?.message ?? `The server answered ${reply.status}.`, reply.status);
}
/** The data of server-sent events. */
async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", piece; !(piece = await reader.read()).done;) {
    const blocks = (rest + piece.value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) if (block.startsWith("data:")) yield block.slice(5).trim();
  }
}
/** Ask for one answer; `arrived` is called with the text so far. Returns {text, thought, ck}. */
async function answer(body, arrived, signal) {
  const key = JSON.stringify(body);
  if (kept.has(key)) return kept.get(key);
  const told = { text: "", thought: "", ck: null };
  let ended = false;
  for await (const data of events(await send("v1/chat/completions", { ...body, stream: true }, signal))) {
    if (data === "[DONE]") break;
    const part = JSON.parse(data);
    if (part.error) throw new Refused(part.error.message, part.error.code);
    const choice = part.choices[0];
    told.text += choice?.delta?.content ?? "";
    told.thought += choice?.delta?.reasoning_content ?? "";
    told.ck = part.ck ?? told.ck;
    told.reason = choice?.finish_reason ?? told.reason;
    ended ||= Boolean(choice?.finish_reason);
    arrived(told.text);
  }
  if (!ended) throw new Refused("The connection broke before the answer was complete. Ask again.", 0);
  if (!body.temperature) kept.set(key, told);
  if (kept.size > 200) kept.delete(kept.keys().next().value);
  return told;
}
const number = (id, otherwise) => $(id).value.trim() === "" ? otherwise : Number($(id).value);
const takesAlpha = () => model.dials.includes($("method").value);
const dialAt = () => Number($("alpha").value);
const texts = () => passages.filter((one) => one.on && one.text.trim()).map((one) => one.text);
function request(ck) {
  return {
    ...(model.name && { model: model.name }), messages: [{ role: "user", content: $("question").value }],
    temperature: number("temperature", 0), max_tokens: number("tokens", 48), ck,
  };
}
function control(arm, alpha = dialAt()) {
  if (arm === "closed") return { passages: [], method: "off", trace: true };
  if (arm === "plain") return { passages: texts(), method: "off", trace: true };
  return { passages: texts(), method: $("method").value, ...(takesAlpha() && { alpha }), trace: true };
}

// --- passages ---

function showPassages() {
  $("passages").replaceChildren(...passages.map((one, i) => {
    const name = `Passage ${i + 1}`;
    const toggle = make("input", { type: "checkbox", role: "switch", checked: one.on, change: () => {
      one.on = toggle.checked;
      item.classList.toggle("off", !one.on);
      passagesChanged();
    } });
    const box = make("textarea", { rows: 2, dir: "auto", "aria-label": `Text of passage ${i + 1}`, input: () => {
      if (one.text !== box.value) one.score = undefined; // it is no longer what was found
      one.text = box.value;
      passagesChanged();
    }, paste: (event) => pasted(event, one) });
    box.value = one.text;
    const source = [one.source && shown(one.source), one.score !== undefined && `score ${one.score.toFixed(3)}`].filter(Boolean);
    const item = make("li", { class: one.on ? "" : "off" },
      make("div", { class: "row" }, make("label", { class: "switch" }, toggle, name),
        make("span", { class: "source" }, source.join(" · ")),
        make("button", { type: "button", "aria-label": `Remove passage ${i + 1}`, click: () => {
          passages.splice(i, 1);
          showPassages();
          $("add").focus();
        } }, "Remove")), box);
    return item;
  }));
  passagesChanged();
}
function passagesChanged() {
  const used = texts().length;
  $("passages-note").textContent = used ? `${used} of ${passages.length} in use` : "None in use: the model answers from memory.";
  clear("passages");
  codeChanged();
}
/** Several paragraphs pasted into an empty box become a passage each. */
function pasted(event, one) {
  const blocks = event.clipboardData.getData("text/plain").split(/\n\s*\n/).map((text) => text.trim()).filter(Boolean);
  if (one.text.trim() || blocks.length < 2) return;
  event.preventDefault();
  passages.splice(passages.indexOf(one), 1, ...blocks.map((text) => ({ text, on: true })));
  showPassages();
  $("news").textContent = `Pasted as ${blocks.length} passages.`;
}
async function find(signal) {
  clear("retrieve", "question");
  if (!questionGiven()) return false;
  $("find").disabled = true;
  try {
    const ck = { retrieve: { k: number("k", 4), mode: $("mode").value }, method: "off" };
    const reply = await (await send("v1/chat/completions", { ...request(ck), temperature: 0, max_tokens: 1 }, signal)).json();
    passages = (reply.ck.hits ?? []).map((hit) => ({ text: hit.text, on: true, score: hit.score, source: hit.source || hit.id }));
    showPassages();
    $("news").textContent = `${passages.length} passages found.`;
    if (!passages.length) fail("retrieve", "The index holds nothing that fits.");
    return true;
  } catch (error) {
    if (error.name !== "AbortError") fail(fieldOf(error) === "ask" ? "retrieve" : fieldOf(error), error.message);
    return false;
  } finally {
    $("find").disabled = false;
  }
}
function questionGiven() {
  if ($("question").value.trim()) return true;
  fail("question", "Write a question first.");
  $("question").focus();
  return false;
}

// --- the dial ---

const point = (alpha, radius) => {
  const angle = Math.PI * (1 - alpha);
  return [180 + radius * Math.cos(angle), 174 - radius * Math.sin(angle)].map((x) => Number(x.toFixed(2)));
};
function meaning(alpha) {
  if (alpha === MIDDLE) return "The model as it is: plain RAG.";
  if (alpha === 0) return "The passages count as much as they can.";
  if (alpha === 1) return "Memory counts, the passages do not.";
  return alpha < MIDDLE ? "Leans to the passages: what they changed is amplified." : "Leans to memory: what the passages changed is damped.";
}
function dialMoved() {
  const alpha = dialAt(), active = takesAlpha();
  const [from, to] = [point(Math.min(alpha, MIDDLE), 130), point(Math.max(alpha, MIDDLE), 130)];
  $("lean").setAttribute("d", alpha === MIDDLE || !active ? "" : `M${from} A130 130 0 0 1 ${to}`);
  $("needle").style.transform = `rotate(${(active ? alpha - MIDDLE : 0) * 180}deg)`;
  document.querySelector("#dial .middle").textContent = active ? alpha.toFixed(2) : "";
  const panel = document.querySelector(".control").classList;
  panel.toggle("to-memory", active && alpha > MIDDLE);
  panel.toggle("as-it-is", active && alpha === MIDDLE);
  panel.toggle("no-dial", !active);
  $("alpha").disabled = !active;
  $("alpha").setAttribute("aria-valuetext", `${alpha.toFixed(2)}. ${meaning(alpha)}`);
  $("lean-text").textContent = active ? meaning(alpha) : "This method chooses by itself; it has no dial.";
  $("method-note").textContent = METHODS[$("method").value] ?? "Chooses by itself, at every token.";
  clear("dial");
  codeChanged();
}
function marks() {
  $("seen").replaceChildren(...[...visited.keys()].map((alpha) => {
    const [cx, cy] = point(alpha, 130);
    return drawn("circle", { cx, cy, r: 5 });
  }));
  $("flip").setAttribute("visibility", flipAt === null ? "hidden" : "visible");
  if (flipAt !== null) $("flip").setAttribute("transform", `rotate(${(flipAt - MIDDLE) * 180} 180 174)`);
}
function drawTicks() {
  for (const alpha of [0, 0.25, 0.5, 0.75, 1]) {
    const [x1, y1] = point(alpha, 116), [x2, y2] = point(alpha, 108), [x, y] = point(alpha, 96);
    const main = alpha === MIDDLE ? { class: "main" } : {};
    $("ticks").append(drawn("line", { x1, y1, x2, y2, ...main }), drawn("text", { x, y: y + 4 }, String(alpha)));
  }
}
let later = 0;
function dialLetGo() {
  clearTimeout(later);
  if ($("again").checked && visited.size + document.querySelectorAll(".arm.done").length) later = setTimeout(() => ask(["chosen"]), 250);
}
function dialDragged(event) {
  const box = $("dial").getBoundingClientRect(), scale = box.width / 360;
  const x = event.clientX - box.left - 180 * scale, y = Math.max(0, box.top + 174 * scale - event.clientY);
  $("alpha").value = 1 - Math.atan2(y, x) / Math.PI;
  dialMoved();
}

// --- answers ---

const cards = {};
function makeCards() {
  for (const { id, title, note } of ARMS) {
    const card = { note: make("p", { class: "note" }, note ?? ""), text: make("p", { class: "answer gains", dir: "auto" }), rest: make("div") };
    card.box = make("article", { class: `arm ${id}`, "aria-labelledby": `arm-${id}` }, make("h3", { id: `arm-${id}` }, title), card.note, card.text, card.rest);
    cards[id] = card;
    $("answers").append(card.box);
  }
  const sample = (gain, label) => make("span", {}, make("span", { class: tokenClass({ gain }) }, make("bdi", {}, gain ? signed(gain, 1) : "0")), ` ${label}`);
  $("legend").append(make("span", {}, "Confidence gain, nats:"), sample(-3, ""), sample(-1.5, "the passages confused the model"), sample(0, ""),
    sample(1.5, ""), sample(3, "they made it surer"), make("span", { class: "gains" }, make("span", { class: "t acted" }, make("bdi", {}, "token")), " switched: the method acted"));
}
function tokenClass({ gain, switched }) {
  const step = gain == null ? 0 : Math.round(Math.max(-1, Math.min(1, gain / SATURATION)) * STEPS);
  return `t g${step + STEPS}${step > 0 ? " surer" : step < 0 ? " confused" : ""}${switched ? " acted" : ""}`;
}
function figures(token) {
  const said = [];
  if (token.gain != null) {
    const word = Math.abs(token.gain) < 0.05 ? "as sure with the passages as without" : token.gain > 0 ? "the passages made the model surer" : "the passages confused the model";
    said.push(`gain ${signed(token.gain)} nats, ${word}`);
  }
  if (token.logp_ctx != null) said.push(`choice ${token.rank_ctx + 1} with the passages (${percent(token.logp_ctx)})`);
  if (token.logp_par != null) said.push(`choice ${token.rank_par + 1} without (${percent(token.logp_par)})`);
  if (token.switched) said.push(`switched, τ = ${tauText(token.tau)}`);
  return said.length ? `${said.join("; ")}.` : "not recorded.";
}
const tauText = (tau) => (tau >= 1000 ? "as large as it gets" : tau.toFixed(2));
/** The answer as tokens; the arrow keys and the pointer go through them, their figures stand below. */
function showTokens(card, told) {
  const trace = told.ck?.trace ?? [];
  if (told.thought) card.rest.append(make("details", {}, make("summary", {}, "What it thought first"), make("p", { dir: "auto" }, shown(told.thought))));
  if (!trace.length || !trace.map((token) => token.text).join("").includes(told.text.trim())) return void (card.text.textContent = shown(told.text));
  const line = make("p", { class: "figures" }, "Point at a token, or go through them with the arrow keys.");
  const spans = trace.map((token) => make("span", { class: tokenClass(token) + (token.text ? "" : " end") }, make("bdi", {}, token.text ? shown(token.text) : " end")));
  let at = -1;
  const go = (i) => {
    spans[at]?.classList.remove("now");
    at = Math.max(0, Math.min(spans.length - 1, i));
    spans[at].classList.add("now");
    line.replaceChildren(make("b", {}, make("bdi", {}, trace[at].text ? shown(trace[at].text) : "end of the answer")), ": ", figures(trace[at]));
  };
  const group = make("div", { role: "group", tabindex: 0, "aria-label": `Tokens of the answer: ${shown(told.text)}. Left and right arrow keys go through them.`,
    keydown: (event) => {
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      line.setAttribute("role", "status");
      go(to);
    } }, ...spans);
  spans.forEach((span, i) => { for (const kind of ["pointerenter", "click"]) span.addEventListener(kind, () => go(i)); });
  card.text.replaceChildren();
  card.text.append(...[group].map((one) => one));
  card.rest.append(line);
}
function showEnd(arm, told) {
  const card = cards[arm];
  card.rest.replaceChildren();
  showTokens(card, told);
  if (!told.text.trim() && !told.thought) card.text.textContent = "(an empty answer)";
  if (told.reason === "length") card.rest.append(make("p", { class: "same" }, "Cut at the longest answer allowed."));
  card.told = told;
  const chosen = cards.chosen.told?.text.trim();
  for (const id of ["plain", "closed"]) {
    cards[id].box.querySelector(".equal")?.remove();
    if (chosen !== undefined && cards[id].told?.text.trim() === chosen) cards[id].rest.append(make("p", { class: "same equal" }, "= the same answer as your setting"));
  }
}
async function run(arm, body, signal) {
  const card = cards[arm];
  if (!kept.has(JSON.stringify(body))) {
    card.text.textContent = "";
    card.rest.replaceChildren();
    card.box.classList.add("waiting");
    card.box.setAttribute("aria-busy", "true");
  }
  card.told = undefined;
  try {
    const told = await answer(body, (text) => { card.text.textContent = shown(text); }, signal);
    if (signal.aborted) return null;
    showEnd(arm, told);
    card.box.classList.add("done");
    return told;
  } catch (error) {
    if (error.name !== "AbortError") {
      const field = fieldOf(error);
      fail(field, error.message);
      if (!card.text.textContent) card.text.textContent = "No answer.";
    }
    return null;
  } finally {
    if (!signal.aborted || card.told === undefined) card.box.classList.remove("waiting");
    card.box.removeAttribute("aria-busy");
  }
}
async function ask(arms = ARMS.map((arm) => arm.id)) {
  clearTimeout(later);
  clear();
  if (!questionGiven()) return;
  asking?.abort();
  const mine = asking = new AbortController();
  $("stop").disabled = false;
  try {
    if (model.retrieve && !passages.length && !(await find(mine.signal))) return;
    const alpha = takesAlpha() ? dialAt() : null, key = tripKey();
    if (key !== visitedFor) [visited, visitedFor] = [new Map(), key];
    cards.chosen.note.textContent = `${$("method").value}${alpha === null ? "" : `, alpha ${alpha.toFixed(2)}`}${texts().length ? "" : "; without passages there is nothing to steer"}`;
    const all = arms.length > 1 ? arms : arms.concat(["plain", "closed"].filter((arm) => !cards[arm].box.classList.contains("done")));
    const done = await Promise.all(all.map((arm) => run(arm, request(control(arm, alpha)), mine.signal)));
    const told = done[all.indexOf("chosen")];
    if (!told) return;
    $("news").textContent = `Your setting answers: ${shown(told.text)}`;
    if (alpha !== null) visited.set(alpha, told.text);
    showWhy(told, alpha);
    showTrip();
    marks();
  } finally {
    if (asking === mine) $("stop").disabled = true;
  }
}
const tripKey = () => JSON.stringify([request(null), texts(), $("method").value]);

// --- why ---

function showWhy(told, alpha) {
  const { drafts = [], trace = [] } = told.ck ?? {};
  flipAt = null;
  $("drafts").replaceChildren(...(drafts.length ? draftsTable(drafts, alpha) : []));
  const acted = trace.filter((token) => token.switched);
  $("switched").replaceChildren(...(drafts.length ? [] : acted.length ? switchedTable(acted, trace.length)
    : [make("p", {}, "No token was switched: this is what the model says with the passages as they are.")]));
  $("why").hidden = false;
}
function cell(label, ...children) {
  return make("td", { class: "num", "data-label": label }, ...children);
}
function draftsTable(drafts, alpha) {
  const most = Math.max(...drafts.flatMap((one) => [one.surprise_ctx, one.surprise_par]), 0.001);
  const bar = (value, kind) => {
    const made = make("span", { class: `bar ${kind}`, "aria-hidden": "true" });
    made.style.width = `${(100 * value) / most}%`;
    return made;
  };
  const rows = drafts.map((one) => make("tr", { class: one.given ? "given" : "" },
    make("th", { scope: "row" }, DRAFTS[one.name] ?? shown(one.name), ...(one.given ? [make("span", { class: "note" }, " given")] : [])),
    make("td", { dir: "auto" }, make("bdi", {}, shown(one.text))),
    cell("surprise with the passages", one.surprise_ctx.toFixed(2), bar(one.surprise_ctx, "ctx")),
    cell("surprise without", one.surprise_par.toFixed(2), bar(one.surprise_par, "par"))));
  const head = ["Draft", "Answer"].map((text) => make("th", { scope: "col" }, text));
  head.push(...["Surprise with the passages", "Surprise without"].map((text) => make("th", { scope: "col", class: "num" }, text)));
  const table = make("table", { class: "drafts" }, make("caption", {}, "Drafts, and how far each surprises the model with the passages and without (nats; less is better)."),
    make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
  return [make("p", {}, weighed(drafts, alpha)), make("div", { class: "scroll" }, table)];
}
/** Why one draft was given and where on the dial that changes; the inequality is policies/dial.py's. */
function weighed(drafts, alpha) {
  if (drafts.length === 1) return "At this end of the dial one draft decides; there is nothing to choose from.";
  if ($("method").value !== "dial" || alpha === null) return "Of two drafts the method gave the one marked.";
  const [first, other] = drafts, name = DRAFTS[other.name] ?? other.name;
  const ctx = first.surprise_ctx - other.surprise_ctx, par = first.surprise_par - other.surprise_par;
  const toMemory = alpha > MIDDLE;
  if (first.text === other.text) return "Both drafts say the same, so the dial has nothing to choose between.";
  if (toMemory ? par <= ctx : ctx <= par) return `“${name}” does not lean to its own side here, so the model as it is keeps the answer, wherever the dial stands on this side.`;
  const tau = par / (par - ctx);
  if (tau > 0 && toMemory === tau < 1) flipAt = 1 / (1 + tau);
  const less = (x) => `${Math.abs(x).toFixed(2)} nats ${x > 0 ? "less" : "more"}`;
  const end = flipAt === null ? "" : ` The answer changes at alpha = ${flipAt.toFixed(2)} (the mark on the dial).`;
  const of = toMemory ? "memory's" : "the amplified";
  return `With the passages, ${of} draft surprises the model ${less(ctx)} than its own; without them, ${less(par)}. ` +
    `At alpha = ${alpha.toFixed(2)} ${other.given ? `that is enough: ${of} draft is given.` : "that is not enough: the model as it is keeps the answer."}${end}`;
}
function switchedTable(acted, all) {
  const rows = acted.slice(0, 60).map((token) => make("tr", {}, make("th", { scope: "row" }, make("bdi", {}, token.text ? shown(token.text) : "(end)")), make("td", {}, figures(token))));
  const more = acted.length > 60 ? ` The first 60 are shown.` : "";
  return [make("div", { class: "scroll" }, make("table", {}, make("caption", {}, `The method acted on ${acted.length} of ${all} tokens.${more}`),
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Token"), make("th", { scope: "col" }, "Why"))), make("tbody", {}, ...rows)))];
}
function showTrip() {
  const rows = [...visited].sort((one, other) => one[0] - other[0]).map(([alpha, text]) => make("li", { class: alpha === dialAt() ? "now" : "" },
    make("button", { type: "button", "aria-label": `Turn the dial to ${alpha.toFixed(2)}`, click: () => { $("alpha").value = alpha; dialMoved(); ask(["chosen"]); } }, alpha.toFixed(2)),
    make("span", { dir: "auto" }, shown(text) || "(empty)")));
  $("settings").replaceChildren(...rows);
  $("trip").hidden = !rows.length;
}

// --- the request as code ---

/** JSON with every character that is not plainly visible escaped: what is copied is what is seen. */
const json = (value, indent) => JSON.stringify(value, null, indent).replace(/[^\x20-\x7e\n\u00a1-\u024f\u0370-\u03ff\u0400-\u04ff\u3040-\u30ff\u4e00-\u9fff]/g,
  (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
function python(value) {
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (value !== null && typeof value === "object") return `{${Object.entries(value).map(([name, one]) => `${json(name)}: ${python(one)}`).join(", ")}}`;
  return { true: "True", false: "False", null: "None" }[String(value)] && typeof value !== "string" ? { true: "True", false: "False", null: "None" }[String(value)] : json(value);
}
function codeChanged() {
  const { ck, ...body } = request(control("chosen")), base = new URL("v1", location.href).href, key = $("key").value !== "";
  const quoted = `'${json({ ...body, ck }, 2).replaceAll("'", "'\\''")}'`;
  const secret = key ? ' \\\n  -H "Authorization: Bearer $CKCONTROL_API_KEY"' : "";
  $("curl").textContent = `curl ${base}/chat/completions${secret} \\\n  -H 'Content-Type: application/json' -d ${quoted}`;
  const fields = Object.entries({ model: model.name || "default", ...body }).map(([name, value]) => `    ${name}=${python(value)},\n`).join("");
  const opened = `client = OpenAI(base_url=${json(base)}, api_key=${key ? 'os.environ["CKCONTROL_API_KEY"]' : '"none"'})`;
  $("python").textContent = `${key ? "import os\n\n" : ""}from openai import OpenAI\n\n${opened}\nreply = client.chat.completions.create(\n${fields}    extra_body={"ck": ${python(ck)}},\n)\nprint(reply.choices[0].message.content)\nprint(reply.ck)`;
}
async function copy(id) {
  try {
    await navigator.clipboard.writeText($(id).textContent);
    $("news").textContent = $(`copy-${id}`).textContent = "Copied";
    setTimeout(() => { $(`copy-${id}`).textContent = "Copy"; }, 2000);
  } catch {
    getSelection().selectAllChildren($(id)); // no clipboard without https: select it, for the keyboard
    $("news").textContent = "Selected: copy it with the keyboard.";
  }
}

// --- the start ---

async function meet() {
  try {
    const told = (await (await send("v1/models")).json()).data[0], ck = told.ck ?? {};
    Object.assign(model, { name: told.id, methods: ck.methods ?? model.methods, dials: ck.dials ?? DIALS, retrieve: ck.retrieve ?? null });
    if (ck.max_tokens) $("tokens").max = ck.max_tokens;
    if (ck.passages) $("k").max = ck.passages;
    $("about").textContent = `${shown(told.id)} · ${model.retrieve ? "with an index of passages" : "no index: type or paste passages"}`;
    clear("key");
  } catch (error) {
    $("about").textContent = error.status === 401 ? "This server asks for an API key." : shown(error.message);
    if (error.status === 401) fail("key", "Enter a key of this server. It stays in this page and is forgotten with it.");
  }
  const chosen = $("method").value;
  const order = [...model.methods].sort((one, other) => model.dials.includes(other) - model.dials.includes(one) || (other === "dial") - (one === "dial"));
  $("method").replaceChildren(...order.map((name) => make("option", {}, name)));
  $("method").value = order.includes(chosen) ? chosen : order[0];
  $("retrieve").hidden = !model.retrieve;
  $("mode").replaceChildren(...(model.retrieve?.modes ?? []).map((name) => make("option", {}, name)));
  if (!model.retrieve && !$("question").value && !passages.length) {
    $("question").value = EXAMPLE.question;
    passages = EXAMPLE.passages.map((text) => ({ text, on: true }));
    showPassages();
  }
  dialMoved();
}
$("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask();
});
$("question").addEventListener("input", () => { clear("question"); codeChanged(); });
$("stop").addEventListener("click", () => asking?.abort());
$("add").addEventListener("click", () => {
  passages.push({ text: "", on: true });
  showPassages();
  $("passages").lastElementChild.querySelector("textarea").focus();
});
$("find").addEventListener("click", () => find());
$("key").addEventListener("change", meet);
$("method").addEventListener("change", () => { dialMoved(); dialLetGo(); });
$("alpha").addEventListener("input", dialMoved);
$("alpha").addEventListener("change", dialLetGo);
for (const id of ["tokens", "temperature"]) $(id).addEventListener("input", codeChanged);
$("dial").addEventListener("pointerdown", (event) => {
  if (!takesAlpha()) return;
  $("dial").setPointerCapture(event.pointerId);
  dialDragged(event);
});
$("dial").addEventListener("pointermove", (event) => { if ($("dial").hasPointerCapture(event.pointerId)) dialDragged(event); });
$("dial").addEventListener("pointerup", dialLetGo);
$("colours").addEventListener("change", () => {
  for (const { text } of Object.values(cards)) text.classList.toggle("gains", $("colours").checked);
  $("legend").hidden = !$("colours").checked;
});
for (const id of ["curl", "python"]) $(`copy-${id}`).addEventListener("click", () => copy(id));
makeCards();
drawTicks();
showPassages();
meet();
