// The ranking page. Gradio runs these files as one, with `element` (its empty host node) and
// `server` (our functions). All DOM is built here, node by node: model text never meets an HTML
// parser. `ranks` are what the person gave (1 best, equal numbers tie); tiers are what is sent.

const RETRY_MS = 4000;
const CALL_TIMEOUT_MS = 15000;
const IDLE_MS = 60000;
const ALIVE_MS = 60000;

window.rankingPage?.abort(); // a page rendered twice must not listen twice
const lifetime = new AbortController();
window.rankingPage = lifetime;

const host = element.querySelector(".ranking-host");
const root = host.shadowRoot ?? host.attachShadow({ mode: "open" });
let view = null; // the card on screen, with all that was said about it
let ahead = null; // the payload of the card after it
let aside = null; // the card to go back to after an edit
let roundComplete = false; // then a command that served this page for its round may end it
let counts = { labeler: "", done: 0, left: 0 };
let lastFinished = null; // assignment that Undo opens again

function node(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function button(kind, text, onclick, properties = {}) {
  return node("button", { type: "button", class: kind, onclick, ...properties }, text);
}

const MATH = "http://www.w3.org/1998/Math/MathML";
const TEXT_TAGS = new Set(
  "p em strong s ul ol li blockquote table thead tbody tr th td pre code hr span".split(" "),
);

// A tree from the server: strings, and [tag, children, class] with tags from a short list.
function treeNode(tree, inMath = false) {
  if (typeof tree === "string") return document.createTextNode(tree);
  const [tag, children, kind] = tree;
  const math = inMath || tag === "math";
  if (!math && !TEXT_TAGS.has(tag)) return document.createTextNode("");
  const made = math ? document.createElementNS(MATH, tag) : document.createElement(tag);
  if (kind?.startsWith("start-")) made.setAttribute("start", kind.slice(6));
  else if (kind) made.className = kind;
  made.append(...children.map((child) => treeNode(child, math)));
  return made;
}

// Gradio's `server` never rejects: anything but our envelope means that nothing was saved.
async function call(name, data) {
  const late = new Promise((resolve) => setTimeout(resolve, CALL_TIMEOUT_MS));
  const answer = await Promise.race([server[name](data), late]).catch(() => undefined);
  if (answer && typeof answer.ok === "boolean") return answer;
  if (await signedOut()) return { ok: false, code: "signed_out" };
  return { ok: false, code: "unavailable", message: t("The server does not answer.") };
}

async function signedOut() {
  try {
    const answer = await fetch("/session", { signal: AbortSignal.timeout(CALL_TIMEOUT_MS) });
    return answer.ok && (await answer.json()).name === null;
  } catch {
    return false; // nobody there: not a matter of signing in
  }
}

function newSubmissionId() {
  // crypto.randomUUID exists only under HTTPS and on localhost.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return "web-" + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// A full or forbidden storage only costs what it would have kept.
function keep(key, value) {
  try {
    if (value === null) localStorage.removeItem("alignflow-" + key);
    else localStorage.setItem("alignflow-" + key, JSON.stringify(value));
  } catch {
    // see above
  }
}

function kept(key) {
  try {
    return JSON.parse(localStorage.getItem("alignflow-" + key) ?? "null");
  } catch {
    return null;
  }
}

// Seconds with the page in front and a sign of life within the last minute.
const timer = {
  seconds: 0,
  lastInput: performance.now(),
  start(seconds) {
    this.seconds = seconds;
    this.lastInput = performance.now();
  },
  get idle() {
    return performance.now() - this.lastInput > IDLE_MS;
  },
  tick() {
    if (!this.idle && document.visibilityState === "visible" && document.hasFocus()) {
      this.seconds += 1;
    }
  },
};
const ticking = setInterval(() => timer.tick(), 1000);
const beating = setInterval(() => {
  const cards = [view, aside, ahead].map((held) => held?.card?.assignment_id).filter(Boolean);
  if (cards.length && !timer.idle) call("rank_alive", { assignment_ids: cards.slice(0, 2) });
}, ALIVE_MS);
lifetime.signal.addEventListener("abort", () => [ticking, beating].forEach(clearInterval));
for (const kind of ["pointermove", "keydown", "scroll", "touchstart"]) {
  const alive = () => (timer.lastInput = performance.now());
  document.addEventListener(kind, alive, { passive: true, signal: lifetime.signal });
}
