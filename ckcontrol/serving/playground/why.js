// Why an answer came out as it did: its tokens, the tokens that were switched, the drafts. Records in, elements out.
//
// Text of models, passages and errors becomes text nodes and nothing else: no markup is parsed, so none can execute.

export const MIDDLE = 0.5;
const SATURATION = 3, STEPS = 4; // as in views/palette.py
const DRAFTS = { unmodified: "The model as it is", memory: "Memory", context: "The passages, amplified" };
const STANCES = { supports: "✓ the same", contradicts: "✗ another", silent: "– not counted" };
const SOURCES = { memory: "Memory", all: "All together" };
const ROWS = 60; // of switched tokens

/** An element; functions among its attributes listen, strings among its children become text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** Text with the characters that would reorder or hide it named instead. */
export const shown = (text) => text.replace(
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff]/g,
  (c) => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);

const signed = (x, digits = 2) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
const tauText = (tau) => (tau >= 1000 ? "as large as it gets" : tau.toFixed(2));
const named = (text) => (text.trim() ? shown(text.trim()) : text.includes("\n") ? "⏎" : text ? "␣" : "end");
function percent(logp) {
  const p = Math.exp(logp);
  return p < 0.001 ? "under 0.1 %" : `${(100 * p).toFixed(p < 0.1 ? 1 : 0)} %`;
}
const choice = (rank, logp) => (logp == null ? "not run" : `choice ${rank + 1}, ${percent(logp)}`);

function tokenClass({ gain, switched }) {
  const step = gain == null ? 0 : Math.round(Math.max(-1, Math.min(1, gain / SATURATION)) * STEPS);
  return `t g${step + STEPS}${step > 0 ? " surer" : step < 0 ? " confused" : ""}${switched ? " acted" : ""}`;
}

/** The parts of the legend. */
export function legend() {
  const sample = (gain, label) => make("span", {}, make("span", { class: tokenClass({ gain }) }, gain ? signed(gain, 1) : "0.0"), ` ${label}`);
  return [make("span", {}, "Confidence gain in nats:"), sample(-3, "passages confused the model"), sample(-1.5, ""), sample(0, ""),
    sample(1.5, ""), sample(3, "made it surer"), make("span", {}, make("span", { class: "t acted" }, "token"), " switched: the method acted")];
}

function figures(token, drafted) {
  const said = [];
  if (token.gain != null) {
    const word = Math.abs(token.gain) < 0.05 ? "as sure with the passages as without"
      : token.gain > 0 ? "the passages made the model surer" : "the passages confused the model";
    said.push(`gain ${signed(token.gain)} nats, ${word}`);
  }
  if (token.logp_ctx != null) said.push(`with the passages ${choice(token.rank_ctx, token.logp_ctx)}`);
  if (token.logp_par != null) said.push(`without them ${choice(token.rank_par, token.logp_par)}`);
  if (token.switched && !drafted) said.push(`switched, τ = ${tauText(token.tau)}`);
  return said.length ? `${said.join("; ")}.` : "its figures were not recorded.";
}

/** An answer as tokens; pointer and arrow keys go through them, and `say` gets what to tell of each. */
export function tokenLine({ text, ck, reason }, say) {
  const trace = ck?.trace ?? [], drafted = Boolean(ck?.drafts);
  if (!trace.length) return make("span", {}, shown(text));
  const last = trace.at(-1).text, ends = reason === "stop" && (!last || !text.trimEnd().endsWith(last.trimEnd()));
  let at = -1;
  const spans = [], parts = [];
  trace.forEach((token, i) => {
    const end = ends && i === trace.length - 1, lead = end ? "" : token.text.match(/^\s*/)[0];
    const piece = end ? "end" : shown(token.text.slice(lead.length)) ;
    spans.push(make("span", { class: tokenClass({ gain: token.gain, switched: token.switched && !drafted }) + (end ? " end" : token.text ? "" : " none") }, make("bdi", {}, piece)));
    parts.push(lead, spans[i]);
    for (const kind of ["pointerenter", "click"]) spans[i].addEventListener(kind, () => go(i));
  });
  function go(i) {
    document.querySelector(".t.now")?.classList.remove("now");
    at = Math.max(0, Math.min(spans.length - 1, i));
    spans[at].classList.add("now");
    const name = ends && at === spans.length - 1 ? "end of the answer" : named(trace[at].text);
    say(make("b", {}, make("bdi", {}, name)), ": ", figures(trace[at], drafted));
  }
  const label = `${shown(text)}. The arrow keys go through its ${spans.length} tokens.`;
  return make("div", { role: "group", tabindex: 0, "aria-label": label, keydown: (event) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    go(to);
  } }, ...parts);
}

function table(caption, columns, rows) {
  const head = columns.map((text, i) => make("th", { scope: "col", class: i > 1 || columns.length > 4 && i ? "num" : "" }, text));
  return make("div", { class: "scroll" }, make("table", { class: "stack" }, make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)));
}
const cell = (label, ...children) => make("td", { class: "num", "data-label": label }, ...children);

/** The tokens that a method acted on. */
export function switchedTable({ ck }) {
  const trace = ck?.trace ?? [], acted = trace.filter((token) => token.switched);
  if (ck?.drafts) return [];
  if (!acted.length) return [make("p", {}, "No token was switched: this is what the model says with the passages as they are.")];
  const columns = ["Token", "Gain, nats", "With the passages", "Without", "τ"];
  const rows = acted.slice(0, ROWS).map((token) => make("tr", {}, make("th", { scope: "row" }, make("bdi", {}, named(token.text))),
    cell(columns[1], token.gain == null ? "not recorded" : signed(token.gain)), cell(columns[2], choice(token.rank_ctx, token.logp_ctx)),
    cell(columns[3], choice(token.rank_par, token.logp_par)), cell(columns[4], tauText(token.tau))));
  const more = acted.length > ROWS ? ` The first ${ROWS} are shown.` : "";
  const caption = `The method acted on ${acted.length} of ${trace.length} tokens.${more} ` +
    "τ is the weight of the passages there: 0 is memory, 1 the model as it is, above 1 the passages are amplified.";
  return [table(caption, columns, rows)];
}

/** What every source answers by itself, beside the answer given, with a sign and a word; `numbers` are those of the passages in the page. */
export function sourcesTable({ ck }, numbers) {
  const columns = ["Source", "In its words", "Its answer", "Surprise at the one given"];
  const rows = ck.sources.map((one) => make("tr", {},
    make("th", { scope: "row" }, SOURCES[one.name] ?? `Passage ${one.passages.map((place) => numbers[place]).join(" + ")}`),
    make("td", { dir: "auto" }, shown(one.text)), cell(columns[2], STANCES[one.stance] ?? ""),
    cell(columns[3], one.surprise == null ? "not recorded" : one.surprise.toFixed(2))));
  const why = ck.disputed ? "The answers disagree: see who answers what." : "No answer that counts says otherwise.";
  return { parts: [make("p", {}, why), table("What memory, every passage and all of them together answer by themselves (nats; less is better). Not counted: an answer that says " +
    "nothing or is not in its passage's words, or a passage without a name of the question.", columns, rows)], flip: null };
}

/** What was drafted, and why one draft was given; `flip` is where on the dial that changes, or null. */
export function draftsTable({ ck }) {
  const drafts = ck?.drafts ?? [];
  if (!drafts.length) return { parts: [], flip: null };
  const most = Math.max(...drafts.flatMap((one) => [one.surprise_ctx, one.surprise_par]), 0.001);
  const bar = (value, kind) => {
    const drawn = make("span", { class: `bar ${kind}`, "aria-hidden": "true" });
    drawn.style.width = `${(100 * value) / most}%`;
    return drawn;
  };
  const columns = ["Draft", "Answer", "Surprise with the passages", "Surprise without"];
  const rows = drafts.map((one) => make("tr", { class: one.given ? "given" : "" },
    make("th", { scope: "row" }, DRAFTS[one.name] ?? shown(one.name), ...(one.given ? [make("span", { class: "note" }, " given")] : [])),
    make("td", { dir: "auto" }, shown(one.text)),
    cell(columns[2], one.surprise_ctx.toFixed(2), bar(one.surprise_ctx, "ctx")),
    cell(columns[3], one.surprise_par.toFixed(2), bar(one.surprise_par, "par"))));
  const { why, flip } = weighed(drafts, ck);
  return { parts: [make("p", {}, why), table("Drafts, and how far each surprises the model with the passages and without (nats; less is better).", columns, rows)], flip };
}

/** The choice in words; the inequality is the one of policies/dial.py. */
function weighed(drafts, { method, alpha }) {
  if (drafts.length === 1) return { why: "At this place of the dial one draft decides; there is nothing to choose from.", flip: null };
  if (method !== "dial" || alpha == null) return { why: "Of two drafts the method gave the one that is marked.", flip: null };
  const [first, other] = drafts, memory = alpha > MIDDLE;
  if (first.text === other.text) return { why: "Both drafts say the same, so there is nothing to choose between.", flip: null };
  const whose = memory ? "memory's draft" : "the amplified draft", found = other.evidence ?? 0;
  const plainly = `so the plain one is given at every alpha ${memory ? "above" : "below"} 0.5.`;
  const lacks = memory ? "gives no answer of its own" : "adds nothing from a passage that is about the question";
  if (other.idle) return { why: `Here ${whose} ${lacks}, ${plainly}`, flip: null };
  const needed = memory ? -Math.log(2 * alpha - 1) : 0.5 - Math.log(1 - 2 * alpha);
  const place = memory ? (1 + Math.exp(-found)) / 2 : (1 - Math.exp(0.5 - found)) / 2;
  const flip = found > (memory ? 0 : 0.5) ? place : null;
  if (flip === null) return { why: `Too little speaks for ${whose} (evidence ${found.toFixed(2)}), ${plainly}`, flip };
  const why = `What speaks for ${whose}: evidence ${found.toFixed(2)}. At alpha = ${alpha.toFixed(2)} more than ${needed.toFixed(2)} is needed, ` +
    `${other.given ? `so ${whose} is given.` : "so the plain one is given."}`;
  return { why: `${why} The answer changes at alpha = ${flip.toFixed(2)}, the mark on the dial.`, flip };
}
