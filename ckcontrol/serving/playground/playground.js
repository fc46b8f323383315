// The playground: a question, passages and the dial in; three answers, their tokens and drafts out.
//
// Knows the page and the server's OpenAI endpoints, and asks nobody else. Text of models, passages and errors becomes
// text nodes and nothing else: no markup is ever parsed, so none of it can execute.

import { asCurl, asPython } from "./code.js";
import { MIDDLE, draftsTable, legend, make, shown, sourcesTable, switchedTable, tokenLine } from "./why.js";

const DIALS = ["dial", "ck-plug", "cad", "ck-plug-repo"]; // where the server does not say which methods take alpha
const METHODS = {
  dial: "Writes whole answers and gives the other one where enough speaks for it; it arrives in one piece.",
  "ck-plug": "Acts only at tokens where the passages confuse the model.",
  "ck-plug-repo": "As in CK-PLUG's published code.",
  cad: "Acts at every token: what the passages changed is amplified or damped.",
  grd: "Chooses by itself between two whole answers; they arrive in one piece.",
  off: "The model as it is: plain RAG.",
};
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

function drawn(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

// --- errors: a sentence beside the field ---

const FIELDS = [
  [/retrieve|index/i, "retrieve"], [/alpha|method|adaptive/i, "dial"], [/passage/i, "passages"],
  [/message|prompt|characters|question/i, "question"], [/API key/i, "key"],
];
function fail(field, text) {
  if (field === "key") { $("key-row").hidden = false; codeChanged(); }
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
const weighsSources = () => Boolean(model.sources) && $("method").value === "dial";
const eachSpeaks = () => weighsSources() && $("each").checked && texts().length > 1;
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
  return { passages: texts(), method: $("method").value, ...(takesAlpha() && { alpha }), ...(eachSpeaks() && { sources: "each" }), trace: true };
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
  $("lean-text").textContent = active ? meaning(alpha)
    : $("method").value === "off" ? "The model as it is; it has no dial." : "This method chooses by itself; it has no dial.";
  $("each-row").hidden = !weighsSources();
  $("method-note").textContent = METHODS[$("method").value] ?? "Chooses by itself.";
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
  if ($("again").checked && cards.chosen.asked) later = setTimeout(() => ask(false), 250);
}
function dialDragged(event) {
  const middle = document.querySelector("#dial .pin").getBoundingClientRect();
  const x = event.clientX - middle.x - middle.width / 2, y = Math.max(0, middle.y + middle.height / 2 - event.clientY);
  $("alpha").value = 1 - Math.atan2(y, x) / Math.PI;
  dialMoved();
}

// --- answers ---

const cards = {};
function makeCards() {
  for (const { id, title, note } of ARMS) {
    const card = { note: make("p", { class: "note" }, note ?? ""), text: make("div", { class: "answer gains", dir: "auto" }, make("span", { class: "unasked" }, "Not asked yet.")), rest: make("div") };
    card.box = make("article", { class: `arm ${id}`, "aria-labelledby": `arm-${id}` }, make("h3", { id: `arm-${id}` }, title), card.note, card.text, card.rest);
    cards[id] = card;
    $("answers").append(card.box);
  }
  $("legend").append(...legend());
}
/** What each sentence rests on: passages by the numbers they have in the page, or memory. */
function citations(cited, used) {
  const name = (place) => `Passage ${passages.findIndex((one) => one.on && one.text === used[place]) + 1 || "no longer here"}`;
  return make("details", { class: "cited", open: true }, make("summary", {}, "What it rests on"), make("ul", {}, ...cited.map((one) =>
    make("li", { dir: "auto" }, make("strong", {}, one.passages.map(name).join(", ") || "Memory"), ` ${shown(one.text)}`))));
}
function showEnd(arm, told, used) {
  const card = cards[arm];
  card.rest.replaceChildren();
  card.text.replaceChildren(tokenLine(told, (...parts) => $("figures").replaceChildren(...parts)));
  if (told.thought) card.rest.append(make("details", {}, make("summary", {}, "What it thought first"), make("p", { dir: "auto" }, shown(told.thought))));
  if (!told.text.trim() && !told.thought) card.text.textContent = "(an empty answer)";
  if (told.ck?.cited?.length) card.rest.append(citations(told.ck.cited, used));
  if (told.reason === "length") card.rest.append(make("p", { class: "same" }, "Cut at the longest answer allowed."));
  card.told = told;
  const chosen = cards.chosen.told?.text.trim();
  for (const id of ["plain", "closed"]) {
    cards[id].box.querySelector(".equal")?.remove();
    if (chosen !== undefined && cards[id].told?.text.trim() === chosen) cards[id].rest.append(make("p", { class: "same equal" }, "= the same answer as your setting"));
  }
}
async function run(arm, body, signal, anew) {
  const card = cards[arm], asked = JSON.stringify(body);
  if (!anew && card.asked === asked && card.told) return card.told;
  card.asked = asked;
  if (!kept.has(asked)) {
    card.text.textContent = "";
    card.rest.replaceChildren();
    card.box.classList.add("waiting");
    card.box.setAttribute("aria-busy", "true");
  }
  card.told = undefined;
  card.signal = signal;
  try {
    const told = await answer(body, (text) => { card.text.textContent = shown(text); }, signal);
    if (signal.aborted) throw new DOMException("", "AbortError");
    showEnd(arm, told, body.ck.passages);
    return told;
  } catch (error) {
    if (card.signal !== signal) return null; // a newer question has this card
    if (error.name !== "AbortError") fail(fieldOf(error), error.message);
    card.rest.replaceChildren(make("p", { class: "same" }, error.name === "AbortError" ? "Stopped." : "No answer: see the sentence above."));
    return null;
  } finally {
    if (card.signal === signal) {
      card.box.classList.remove("waiting");
      card.box.removeAttribute("aria-busy");
    }
  }
}
async function ask(anew = true) {
  clearTimeout(later);
  clear();
  if (!questionGiven()) return;
  asking?.abort();
  const mine = asking = new AbortController();
  $("stop").disabled = false;
  try {
    if (model.retrieve && !passages.length && !(await find(mine.signal))) return;
    const alpha = takesAlpha() ? dialAt() : null;
    newTrip();
    const numbers = passages.flatMap((one, i) => (one.on && one.text.trim() ? [i + 1] : []));
    cards.chosen.note.textContent = `${$("method").value}${alpha === null ? "" : `, alpha ${alpha.toFixed(2)}`}${texts().length ? "" : "; without passages there is nothing to steer"}`;
    const [told] = await Promise.all(ARMS.map(({ id }) => run(id, request(control(id, alpha)), mine.signal, anew || id === "chosen")));
    if (!told) return;
    $("news").textContent = `Your setting answers: ${shown(told.text)}`;
    if (alpha !== null) visited.set(alpha, told.text);
    showWhy(told, numbers);
    showTrip();
  } finally {
    if (asking === mine) $("stop").disabled = true;
  }
}
/** Ask at five places of the dial, side by side. */
async function sweep() {
  if (!questionGiven() || !takesAlpha()) return;
  asking?.abort();
  const mine = asking = new AbortController();
  $("stop").disabled = false;
  $("sweep").disabled = true;
  newTrip();
  try {
    await Promise.all([0, 0.25, 0.5, 0.75, 1].map(async (alpha) => {
      const { text } = await answer(request(control("chosen", alpha)), () => {}, mine.signal);
      visited.set(alpha, text);
      showTrip();
    }));
  } catch (error) {
    if (error.name !== "AbortError") fail(fieldOf(error), error.message);
  } finally {
    $("sweep").disabled = false;
    if (asking === mine) $("stop").disabled = true;
  }
}
/** Forget the answers along the dial, unless they are of the same question, passages and method. */
function newTrip() {
  const key = JSON.stringify([request(null), texts(), $("method").value, eachSpeaks()]);
  if (key !== visitedFor) [visited, visitedFor, flipAt] = [new Map(), key, null];
}
function showWhy(told, numbers) {
  const { parts, flip } = told.ck?.sources?.length > 2 ? sourcesTable(told, numbers) : draftsTable(told);
  flipAt = flip;
  $("drafts").replaceChildren(...parts);
  $("switched").replaceChildren(...switchedTable(told));
  $("why").hidden = false;
}
function showTrip() {
  const rows = [...visited].sort(([one], [other]) => one - other).map(([alpha, text]) => make("li", { class: alpha === dialAt() ? "now" : "" },
    make("button", { type: "button", "aria-label": `Turn the dial to ${alpha.toFixed(2)}`, click: () => { $("alpha").value = alpha; dialMoved(); ask(false); } }, alpha.toFixed(2)),
    make("span", { dir: "auto" }, shown(text) || "(empty)")));
  $("settings").replaceChildren(...rows);
  $("trip").hidden = !rows.length;
  marks();
}

// --- the request as code ---

function codeChanged() {
  const body = request(control("chosen")), base = new URL("v1", location.href).href, locked = !$("key-row").hidden;
  $("curl").textContent = asCurl(base, body, locked);
  $("python").textContent = asPython(base, body, locked);
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
    Object.assign(model, { name: told.id, methods: ck.methods ?? model.methods, dials: ck.dials ?? DIALS, retrieve: ck.retrieve ?? null, sources: ck.sources ?? null });
    if (ck.max_tokens) $("tokens").max = ck.max_tokens;
    if (ck.passages) $("k").max = ck.passages;
    $("about").textContent = `${shown(told.id)} · ${model.retrieve ? "with an index of passages" : "no index: type or paste passages"}`;
    clear("key");
  } catch (error) {
    $("about").textContent = error.status === 401 ? "This server asks for an API key." : shown(error.message);
    if (error.status === 401) fail("key", `${$("key").value ? "The server does not take this key. " : ""}Enter a key of this server. It stays in this page and is forgotten with it.`);
  }
  const chosen = $("method").value;
  const order = [...model.methods].sort((one, other) => model.dials.includes(other) - model.dials.includes(one) || (other === "dial") - (one === "dial"));
  $("method").replaceChildren(...order.map((name) => make("option", {}, name)));
  $("method").value = order.includes(chosen) ? chosen : order[0];
  $("retrieve").hidden = !model.retrieve;
  $("mode").replaceChildren(...(model.retrieve?.modes ?? []).map((name) => make("option", {}, name)));
  if (model.name && !model.retrieve && !$("question").value && !passages.length) {
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
$("sweep").addEventListener("click", sweep);
$("stop").addEventListener("click", () => asking?.abort());
$("add").addEventListener("click", () => {
  passages.push({ text: "", on: true });
  showPassages();
  $("passages").lastElementChild.querySelector("textarea").focus();
});
$("find").addEventListener("click", () => find());
$("key").addEventListener("change", meet);
$("each").addEventListener("change", () => { codeChanged(); dialLetGo(); });
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
  for (const element of [$("legend"), ...Object.values(cards).map((card) => card.text)]) element.classList.toggle("gains", $("colours").checked);
  $("legend").hidden = !$("colours").checked;
});
for (const id of ["curl", "python"]) $(`copy-${id}`).addEventListener("click", () => copy(id));
makeCards();
drawTicks();
showPassages();
meet();
