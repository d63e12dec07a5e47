// The ranking page. Gradio runs this with `element` (its empty host node) and `server` (our three
// functions). All DOM is built here from text nodes: model text never meets an HTML parser.
// Ranks are what the person typed (1 best, equal numbers tie); tiers are what the server wants.

const RETRY_MS = 4000;
const CALL_TIMEOUT_MS = 15000;
const IDLE_MS = 60000;

window.rankingPage?.abort(); // a page rendered twice must not listen twice
const lifetime = new AbortController();
window.rankingPage = lifetime;

const host = element.querySelector(".ranking-host");
const root = host.shadowRoot ?? host.attachShadow({ mode: "open" });
let view = null; // the card on screen: payload, ranks, submission id and its nodes

// ---- Small tools ---------------------------------------------------------------------------

function node(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// Gradio's `server` never rejects: anything but our envelope means that nothing was saved.
async function call(name, data) {
  const late = new Promise((resolve) => setTimeout(resolve, CALL_TIMEOUT_MS));
  const answer = await Promise.race([server[name](data), late]).catch(() => undefined);
  if (answer && typeof answer.ok === "boolean") return answer;
  if (await signedOut()) return { ok: false, code: "signed_out" };
  return { ok: false, code: "unavailable", message: "The server does not answer." };
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

function draftKey(card) {
  return "alignflow-draft-" + card.assignment_id;
}

function saveDraft() {
  const { ranks, submissionId, sent } = view;
  const draft = JSON.stringify({ ranks, submissionId, sent, seconds: timer.seconds });
  try {
    sessionStorage.setItem(draftKey(view.card), draft);
  } catch {
    // A full or forbidden storage only costs the draft.
  }
}

function readDraft(card) {
  try {
    const draft = JSON.parse(sessionStorage.getItem(draftKey(card)) ?? "null");
    return draft && draft.ranks?.length === card.responses.length ? draft : null;
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
  tick() {
    const idle = performance.now() - this.lastInput > IDLE_MS;
    if (!idle && document.visibilityState === "visible" && document.hasFocus()) this.seconds += 1;
  },
};
const ticking = setInterval(() => timer.tick(), 1000);
lifetime.signal.addEventListener("abort", () => clearInterval(ticking));
for (const kind of ["pointermove", "keydown", "scroll", "touchstart"]) {
  const alive = () => (timer.lastInput = performance.now());
  document.addEventListener(kind, alive, { passive: true, signal: lifetime.signal });
}

// ---- What is on the page -------------------------------------------------------------------

function showPage(labeler, progress, ...content) {
  const signOut = node(
    "form",
    { method: "post", action: "/sign-out" },
    node("button", { class: "link", type: "submit" }, "Sign out"),
  );
  const header = node(
    "header",
    { class: "header" },
    node("h1", {}, "Rank responses"),
    node("p", { class: "progress" }, progress),
    node("p", { class: "who" }, node("bdi", {}, labeler), signOut),
  );
  const scrolled = node("div", { class: "content" }, header, ...content);
  const page = node("div", { class: "page" }, node("div", { class: "scroll" }, scrolled));
  root.replaceChildren(page);
  return page;
}

function showNotice(labeler, title, text) {
  view = null;
  showPage(
    labeler,
    "",
    node(
      "section",
      { class: "notice", role: "status" },
      node("h2", { tabindex: "-1" }, title),
      node("p", {}, text),
    ),
  );
}

function promptNode(card) {
  const speaker = { user: "Person", assistant: "Assistant", system: "Instruction" };
  const many = card.messages.length > 1;
  const turns = card.messages.map((message) =>
    node(
      "div",
      { class: "turn " + message.role },
      many ? node("p", { class: "speaker" }, speaker[message.role]) : null,
      node("p", { class: "text", dir: "auto", lang: card.language }, message.text),
    ),
  );
  return node(
    "section",
    { class: "prompt", "aria-label": "Prompt" },
    node("h2", {}, many ? "Conversation" : "Prompt"),
    ...turns,
  );
}

function responseNode(card, index) {
  const { label, text, cut_off: cutOff } = card.responses[index];
  const ranks = card.responses.map((_, place) =>
    node(
      "button",
      {
        type: "button",
        class: "rank",
        "aria-pressed": "false",
        "aria-label": `Rank ${place + 1} for response ${label}`,
        onclick: (event) => {
          setRank(index, place + 1);
          if (event.detail > 0) focusResponse(index); // by pointer: keys go on from the response
        },
      },
      String(place + 1),
    ),
  );
  const shown = text
    ? node("p", { class: "text", dir: "auto", lang: card.language }, text)
    : node("p", { class: "text empty" }, "(empty response)");
  if (cutOff) shown.append(" ", node("span", { class: "cut" }, "(cut off)"));
  return node(
    "article",
    {
      class: "response",
      "aria-label": "Response " + label,
      tabindex: index ? "-1" : "0",
      onfocusin: () => (view.current = index),
    },
    node("h3", {}, label),
    node("div", { class: "body" }, shown),
    node("div", { class: "ranks", role: "group", "aria-label": "Rank of " + label }, ...ranks),
  );
}

function showCard(payload) {
  const { card, labeler, number, total, skip_reasons: reasons } = payload;
  const draft = readDraft(card);
  view = {
    card,
    ranks: draft?.ranks ?? card.responses.map(() => null),
    submissionId: draft?.submissionId ?? newSubmissionId(),
    sent: draft?.sent ?? false,
    busy: false,
    current: 0,
    articles: card.responses.map((_, index) => responseNode(card, index)),
    order: node("p", { class: "order" }),
    state: node("p", { class: "state", role: "status" }),
    submit: node("button", { type: "button", class: "primary", onclick: submit }, "Submit"),
    skip: node("button", { type: "button", class: "secondary", onclick: openSkip }, "Skip"),
  };
  timer.start(draft?.seconds ?? 0);
  view.dialog = skipDialog(reasons);
  const unfold = node(
    "button",
    { type: "button", class: "link unfold", hidden: "", onclick: unfoldAll },
    "Show full texts",
  );
  const highest = card.responses.length;
  const task = node(
    "div",
    { class: "task" },
    node("h2", {}, "Which responses are better?"),
    node("p", {}, `Rank each one: 1 is best, ${highest} is worst. The same number is a tie.`),
    unfold,
  );
  const grid = node("div", { class: "grid", "data-count": highest }, ...view.articles);
  const bar = node(
    "footer",
    { class: "bar" },
    node("div", { class: "summary" }, view.order, view.state),
    node("div", { class: "actions" }, view.skip, view.submit),
  );
  const parts = [promptNode(card), task, grid, keysNode(highest)];
  showPage(labeler, `${number} of ${total}`, ...parts).append(bar, view.dialog);
  const long = [...root.querySelectorAll(".prompt, .body")].filter(
    (part) => part.scrollHeight > part.clientHeight + 1,
  );
  long.forEach((part) => part.setAttribute("tabindex", "0")); // so that keys scroll it as well
  unfold.hidden = !long.some((part) => part.classList.contains("body"));
  update();
  focusResponse(Math.max(0, view.ranks.indexOf(null)), { preventScroll: true });
  if (view.sent) submit(); // it was on its way when the page was reloaded
}

function unfoldAll(event) {
  root.querySelector(".grid").classList.add("unfolded"); // all alike, so none gets an edge
  event.target.hidden = true;
}

function keysNode(highest) {
  const key = (...names) => names.map((name) => node("kbd", {}, name));
  return node(
    "p",
    { class: "keys" },
    node("span", {}, ...key("1"), "–", ...key(String(highest)), " rank, then the next response"),
    node("span", {}, ...key("←", "→"), " choose a response"),
    node("span", {}, ...key("Backspace"), " clear"),
    node("span", {}, ...key("Enter"), " submit"),
    node("span", {}, ...key("S"), " skip"),
  );
}

// ---- Ranking -------------------------------------------------------------------------------

// Ranks as typed to tiers without gaps: 1, 1, 3 becomes 0, 0, 1.
function tiersOf(ranks) {
  const used = [...new Set(ranks)].sort((a, b) => a - b);
  return ranks.map((rank) => used.indexOf(rank));
}

function complete() {
  return view.ranks.every((rank) => rank !== null);
}

function setRank(index, rank) {
  if (view.busy || view.sent) return;
  view.ranks[index] = rank;
  saveDraft();
  update();
}

function focusResponse(index, options = {}) {
  view.articles.forEach((article, k) => article.setAttribute("tabindex", k === index ? "0" : "-1"));
  view.articles[index].focus(options);
}

function orderText() {
  const ranked = view.card.responses.map((r, k) => ({ label: r.label, rank: view.ranks[k] }));
  const used = [...new Set(view.ranks.filter((rank) => rank !== null))].sort((a, b) => a - b);
  const tiers = used.map((rank) =>
    ranked.filter((r) => r.rank === rank).map((r) => r.label).join(" = "),
  );
  return tiers.join("  ›  ");
}

function update() {
  view.articles.forEach((article, index) => {
    article.classList.toggle("done", view.ranks[index] !== null);
    article.querySelectorAll(".rank").forEach((button, place) => {
      button.setAttribute("aria-pressed", String(view.ranks[index] === place + 1));
      button.disabled = view.busy || view.sent;
    });
  });
  const open = view.ranks.filter((rank) => rank === null).length;
  view.order.textContent = orderText() || "Nothing ranked yet";
  view.submit.disabled = open > 0 || view.busy;
  view.skip.disabled = view.busy || view.sent;
  if (!view.sent) setState("open", open ? `${open} to rank` : "Ready. Not submitted yet");
}

function setState(kind, text) {
  view.state.className = "state " + kind;
  view.state.textContent = text;
}

// ---- Talking to the server -----------------------------------------------------------------

async function submit() {
  const mine = view;
  if (!mine || mine.busy || !complete()) return;
  mine.busy = mine.sent = true; // from here on the ranking is fixed until the server answers
  clearTimeout(mine.retry);
  saveDraft();
  update();
  setState("saving", "Saving…");
  const answer = await call("rank_submit", {
    assignment_id: mine.card.assignment_id,
    submission_id: mine.submissionId,
    tiers: tiersOf(mine.ranks),
    active_seconds: Math.min(timer.seconds, 86400),
  });
  mine.busy = false;
  if (answer.ok) return finish(mine);
  if (answer.code === "signed_out") return signIn();
  if (answer.code === "unavailable") {
    setState("problem", `Not saved. ${answer.message} Trying again…`);
    mine.retry = setTimeout(() => view === mine && submit(), RETRY_MS);
  } else {
    mine.sent = false;
    mine.submissionId = newSubmissionId();
    saveDraft();
    update();
    setState("problem", `Not saved: ${answer.message}`);
  }
  view.submit.disabled = false;
}

async function skip(reason) {
  const mine = view;
  mine.dialog.close();
  mine.busy = true;
  update();
  setState("saving", "Skipping…");
  const data = { assignment_id: mine.card.assignment_id, reason };
  const answer = await call("rank_skip", data);
  mine.busy = false;
  if (answer.ok) return finish(mine);
  if (answer.code === "signed_out") return signIn();
  update();
  setState("problem", `Not skipped: ${answer.message}`);
}

async function finish(mine) {
  setState("saved", "Saved");
  try {
    sessionStorage.removeItem(draftKey(mine.card));
  } catch {
    // nothing to remove
  }
  await next();
}

function signIn() {
  window.location.assign("/sign-in");
}

async function next() {
  const answer = await call("rank_next", {});
  if (!answer.ok) {
    if (answer.code === "signed_out") return signIn();
    showNotice("", "The next prompt did not come", answer.message + " Trying again…");
    return later();
  }
  const { card, labeler, state, done } = answer.data;
  if (card) return showCard(answer.data);
  const thanks = done ? ` You ranked ${done}.` : "";
  if (state === "finished") {
    return showNotice(labeler, "All done, thank you", `This round is complete.${thanks}`);
  }
  if (state === "no_round") {
    showNotice(labeler, "Nothing to rank yet", "No round is open. This page looks again by itself.");
  } else {
    const { rankings_done: have, rankings_wanted: want } = answer.data;
    const text = `${have} of ${want} rankings are in; the rest is with other people.${thanks}`;
    showNotice(labeler, "Nothing left for you right now, thank you", text);
  }
  later();
}

function later() {
  setTimeout(() => lifetime.signal.aborted || view || next(), RETRY_MS);
}

// ---- Skipping ------------------------------------------------------------------------------

function skipDialog(reasons) {
  const buttons = reasons.map(([code, text]) =>
    node("button", { type: "button", class: "secondary", onclick: () => skip(code) }, text),
  );
  const cancel = node(
    "button",
    { type: "button", class: "link", onclick: () => view.dialog.close() },
    "Cancel",
  );
  return node(
    "dialog",
    { class: "dialog", "aria-label": "Skip this prompt" },
    node("h2", {}, "Why skip this prompt?"),
    node("p", {}, "It goes to someone else and does not come back to you."),
    ...buttons,
    cancel,
  );
}

function openSkip() {
  if (!view.busy && !view.sent) view.dialog.showModal();
}

// ---- Keys ----------------------------------------------------------------------------------

function onKey(event) {
  if (!view || view.dialog.open || event.altKey || event.metaKey) return;
  const count = view.ranks.length;
  const onButton = event.composedPath()[0].closest("button, a, input") !== null;
  const digit = /^[1-9]$/.test(event.key) ? Number(event.key) : 0;
  if (event.key === "Enter" && (event.ctrlKey || !onButton)) submit();
  else if (event.ctrlKey) return;
  else if (digit && digit <= count) rankCurrent(digit);
  else if (event.key === "Backspace" || event.key === "Delete") setRank(view.current, null);
  else if (event.key === "ArrowRight") focusResponse((view.current + 1) % count);
  else if (event.key === "ArrowLeft") focusResponse((view.current + count - 1) % count);
  else if (event.key === "s" || event.key === "S") openSkip();
  else return;
  event.preventDefault();
}

function rankCurrent(rank) {
  const index = view.current;
  setRank(index, rank);
  const count = view.ranks.length;
  const following = view.ranks.map((_, k) => (index + 1 + k) % count);
  const open = following.find((k) => view.ranks[k] === null);
  focusResponse(open ?? index);
}

async function begin() {
  const style = new CSSStyleSheet();
  style.replaceSync(await (await fetch("/ranking_page.css")).text());
  root.adoptedStyleSheets = [style];
  await next();
}

document.addEventListener("keydown", onKey, { signal: lifetime.signal });
begin();
