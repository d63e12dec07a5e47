// ---- The card and what is said about it ----------------------------------------------------

function showCard(payload) {
  const { card, asked } = payload;
  syncDraft(); // of the card before
  const draft = readDraft(payload) ?? payload.said;
  counts = { labeler: payload.labeler, done: payload.done, left: payload.left };
  view = {
    payload,
    card,
    asked,
    revising: payload.revising ?? 0, // the version that would be replaced
    ranks: draft?.ranks ?? card.responses.map(() => null),
    grades: draft?.grades ?? {},
    rejected: new Set(draft?.rejected ?? []),
    unsafe: draft?.unsafe ?? {},
    scores: draft?.scores ?? {},
    rationale: draft?.rationale ?? "",
    submissionId: draft?.submissionId ?? newSubmissionId(),
    sent: draft?.sent ?? false,
    moves: draft?.moves ?? 0,
    began: draft?.began ?? Date.now(),
    raw: view?.raw ?? false,
    busy: false,
    current: 0,
  };
  timer.start(draft?.seconds ?? 0);
  drawCard();
  focusResponse(Math.max(0, view.ranks.indexOf(null)), { preventScroll: true });
  if (view.sent) submit(); // it was on its way when the page was reloaded
}

function drawCard() {
  const { card } = view;
  const highest = card.responses.length;
  view.articles = card.responses.map((_, index) => responseNode(card, index));
  view.lane = laneNode();
  view.state = node("p", { class: "state", role: "status" });
  view.submit = button("primary", t(view.revising ? "Submit change" : "Submit"), submit);
  view.skip = view.revising
    ? button("secondary", t("Leave as it was"), leaveEdit)
    : button("secondary", t("Skip"), openSkip);
  view.undo = button("secondary undo", t("Undo"), undo, { "aria-keyshortcuts": "Control+Z" });
  const unfold = button("link unfold", t("Show full texts"), unfoldAll, { hidden: "" });
  const raw = button("link", t(view.raw ? "Show formatted text" : "Show raw text"), toggleRaw);
  const told = t("Rank each one: 1 is best, {n} is worst. The same number is a tie.", { n: highest });
  const task = node(
    "div",
    { class: "task" },
    node("h2", {}, t("Which responses are better?")),
    node("p", {}, told),
    unfold,
    raw,
  );
  const grid = node("div", { class: "grid", "data-count": highest }, ...view.articles);
  const bar = node(
    "footer",
    { class: "bar" },
    node("div", { class: "summary" }, view.lane, view.state),
    node("div", { class: "actions" }, view.undo, view.skip, view.submit),
  );
  const parts = [promptNode(card), task, grid, pairNode(), rationaleNode(), keysNode(highest)];
  const total = counts.done + counts.left;
  const progress = t("{n} of {total}", { n: counts.done + 1, total: total >= 200 ? "200+" : total });
  showPage(view.revising ? "" : progress, ...parts.filter(Boolean)).append(bar);
  const long = [...root.querySelectorAll(".prompt, .body")].filter(
    (part) => part.scrollHeight > part.clientHeight + 1,
  );
  long.forEach((part) => part.setAttribute("tabindex", "0")); // so that keys scroll it as well
  unfold.hidden = !long.some((part) => part.classList.contains("body"));
  update();
}

function unfoldAll(event) {
  root.querySelector(".grid").classList.add("unfolded"); // all alike, so none gets an edge
  event.target.hidden = true;
}

function toggleRaw() {
  view.raw = !view.raw;
  const { current } = view;
  drawCard();
  focusResponse(current, { preventScroll: true });
}

// Two responses: the whole opinion in one press, from one much better to the other.
function pairNode() {
  if (view.card.responses.length !== 2) return null;
  const [a, b] = view.card.responses.map((response) => response.label);
  const strengths = view.asked.strength === "off" ? [null] : [3, 2, 1];
  const words = { 3: "{label} much better", 2: "{label} better", 1: "{label} slightly better", null: "{label} better" };
  const choice = (ranks, grade, text) =>
    button("scale", text, () => setPair(ranks, grade), { "aria-pressed": "false", "data-pair": `${ranks} ${grade}` });
  const buttons = [
    ...strengths.map((grade) => choice([1, 2], grade, t(words[grade], { label: a }))),
    choice([1, 1], null, t("Equally good")),
    ...strengths.toReversed().map((grade) => choice([2, 1], grade, t(words[grade], { label: b }))),
  ];
  const label = t("Which is better, and by how much");
  return node("div", { class: "pair", role: "group", "aria-label": label }, ...buttons);
}

function setPair(ranks, grade) {
  if (view.busy || view.sent) return;
  view.ranks = [...ranks];
  const [above, below] = tierLists();
  if (below) view.grades[gradeKey(above, below)] = grade;
  settleRejected(-1);
  changed();
}

// Ranks as given to tiers without gaps: 1, 1, 3 becomes 0, 0, 1.
function tiersOf(ranks) {
  const used = [...new Set(ranks)].sort((a, b) => a - b);
  return ranks.map((rank) => used.indexOf(rank));
}

// What still keeps the card from being submitted; empty if nothing does.
function missing() {
  const open = view.ranks.filter((rank) => rank === null).length;
  if (open) return t("{n} to rank", { n: open });
  const tiers = tierLists();
  const ungraded = tiers.slice(1).some((tier, k) => !view.grades[gradeKey(tiers[k], tier)]);
  if (view.asked.strength === "required" && ungraded) return t("Grade each gap");
  if (view.asked.rationale === "required" && !view.rationale.trim()) return t("A reason is needed");
  return "";
}

function said() {
  const tiers = tierLists();
  const gaps = tiers.slice(1).map((tier, k) => view.grades[gradeKey(tiers[k], tier)] ?? null);
  const scores = Object.entries(view.scores).filter(([, value]) => value);
  return {
    tiers: tiersOf(view.ranks),
    gaps: gaps.some((gap) => gap !== null) || view.asked.strength === "required" ? gaps : [],
    bar: barOf(tiers),
    flags: Object.entries(view.unsafe).map(([index, category]) => [Number(index), category]),
    scores: scores.map(([key, value]) => {
      const cut = key.indexOf(" ");
      return [Number(key.slice(0, cut)), key.slice(cut + 1), value];
    }),
    rationale: view.rationale.trim(),
  };
}

// What was submitted before, as a draft to go on from.
function draftOf({ tiers, gaps, bar, flags, scores, rationale }) {
  const ranks = tiers.map((tier) => tier + 1);
  const lists = [...new Set(tiers)]
    .sort((a, b) => a - b)
    .map((tier) => tiers.flatMap((own, index) => (own === tier ? [index] : [])));
  const grades = Object.fromEntries(gaps.map((gap, k) => [gradeKey(lists[k], lists[k + 1]), gap]));
  return {
    ranks,
    grades,
    rejected: bar === null ? [] : lists.slice(bar).flat(),
    unsafe: Object.fromEntries(flags),
    scores: Object.fromEntries(scores.map(([index, name, value]) => [`${index} ${name}`, value])),
    rationale,
  };
}

function setRank(index, rank) {
  if (view.busy || view.sent) return;
  const first = view.ranks[index] === null;
  view.ranks[index] = rank;
  const keepsMark = first && view.rejected.has(index);
  settleRejected(keepsMark ? -1 : index);
  changed();
}

function setUnsafe(index, category) {
  if (category) view.unsafe[index] = category;
  else delete view.unsafe[index];
  changed();
  focusResponse(index);
}

function changed() {
  view.moves += 1;
  saveDraft();
  update();
}

function focusResponse(index, options = {}) {
  view.articles.forEach((article, k) => article.setAttribute("tabindex", k === index ? "0" : "-1"));
  view.articles[index].focus(options);
}

function update() {
  const fixed = view.busy || view.sent;
  view.articles.forEach((article, index) => {
    article.classList.toggle("done", view.ranks[index] !== null);
    article.classList.toggle("rejected", view.rejected.has(index));
    article.querySelectorAll(".rank").forEach((each, place) => {
      each.setAttribute("aria-pressed", String(view.ranks[index] === place + 1));
      each.disabled = fixed;
    });
    const reject = article.querySelector(".reject");
    reject.setAttribute("aria-pressed", String(view.rejected.has(index)));
    reject.disabled = fixed;
    const unsafe = article.querySelector(".unsafe");
    const category = view.unsafe[index];
    unsafe.setAttribute("aria-pressed", String(Boolean(category)));
    unsafe.textContent = category ? t("Unsafe: {category}", { category: categoryWords(category) }) : t("Unsafe");
    unsafe.disabled = fixed;
  });
  const [above, below] = tierLists();
  const grade = below ? (view.grades[gradeKey(above, below)] ?? null) : null;
  root.querySelectorAll(".scale").forEach((each) => {
    each.setAttribute("aria-pressed", String(each.dataset.pair === `${view.ranks} ${grade}`));
    each.disabled = fixed;
  });
  const lane = laneNode();
  const hadFocus = view.lane.contains(root.activeElement);
  const place = [...view.lane.querySelectorAll("button")].indexOf(root.activeElement);
  view.lane.replaceWith(lane);
  view.lane = lane;
  if (hadFocus) lane.querySelectorAll("button")[place]?.focus();
  const lacking = missing();
  view.submit.disabled = Boolean(lacking) || view.busy;
  view.skip.disabled = fixed;
  view.undo.disabled = fixed || Boolean(view.revising) || !lastFinished;
  if (view.area) view.area.disabled = fixed;
  if (view.sent) return;
  const editing = t("Changing what you submitted (version {n})", { n: view.revising });
  setState("open", lacking || (view.revising ? editing : t("Ready. Not submitted yet")));
}

function setState(kind, text) {
  view.state.className = "state " + kind;
  view.state.textContent = text;
}
