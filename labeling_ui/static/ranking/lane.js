// ---- The lane: the ranking from best to worst, to look at and to drag in -------------------

const GRADES = [null, 1, 2, 3];
const GRADE_WORDS = ["not graded", "slightly", "clearly", "much"];

// Indices of the responses by tier, best first.
function tierLists() {
  const used = [...new Set(view.ranks.filter((rank) => rank !== null))].sort((a, b) => a - b);
  return used.map((rank) => view.ranks.flatMap((own, index) => (own === rank ? [index] : [])));
}

function labelsOf(tier) {
  return tier.map((index) => view.card.responses[index].label).join(" = ");
}

// A grade belongs to the two neighbouring tiers: it goes when either of them changes.
function gradeKey(above, below) {
  return `${above}>${below}`;
}

function cycleGrade(above, below) {
  if (view.busy || view.sent || view.asked.strength === "off") return;
  const key = gradeKey(above, below);
  view.grades[key] = GRADES[(GRADES.indexOf(view.grades[key] ?? null) + 1) % GRADES.length];
  changed();
}

// First tier that has a rejected response; all from there on are rejected.
function barOf(tiers) {
  const first = tiers.findIndex((tier) => tier.some((index) => view.rejected.has(index)));
  return first === -1 ? null : first;
}

function gapNode(tiers, place) {
  const [above, below] = [tiers[place], tiers[place + 1]];
  const grade = view.grades[gradeKey(above, below)] ?? null;
  const sign = "›".repeat(grade ?? 1);
  if (view.asked.strength === "off") return node("span", { class: "gap" }, sign);
  const words = t(GRADE_WORDS[grade ?? 0]);
  const told = { a: labelsOf(above), b: labelsOf(below), grade: words };
  return button(
    "gap" + (grade ? " graded" : ""),
    grade ? `${sign} ${words}` : sign,
    () => cycleGrade(above, below),
    {
      "aria-label": t("How much better is {a} than {b}: {grade}. Press to change.", told),
      title: words,
      "data-drop": `before ${place + 1}`,
    },
  );
}

function chipNode(index) {
  const { label } = view.card.responses[index];
  const chip = node(
    "span",
    {
      class: "chip" + (view.unsafe[index] ? " flagged" : ""),
      "data-chip": index,
      title: t("Response {label}, drag to rank", { label }),
      onpointerdown: (event) => startDrag(event, index, chip),
    },
    label,
  );
  return chip;
}

function laneNode() {
  const tiers = tierLists();
  const bar = barOf(tiers);
  const parts = [node("span", { class: "drop", "data-drop": "before 0" })];
  tiers.forEach((tier, place) => {
    if (place === bar) parts.push(node("span", { class: "bar-mark" }, t("unacceptable from here")));
    const chips = tier.flatMap((index, k) => (k ? [" = ", chipNode(index)] : [chipNode(index)]));
    const kind = "tier" + (bar !== null && place >= bar ? " rejected" : "");
    parts.push(node("span", { class: kind, "data-drop": `tier ${place}` }, ...chips));
    if (place < tiers.length - 1) parts.push(gapNode(tiers, place));
  });
  parts.push(node("span", { class: "drop last", "data-drop": `before ${tiers.length}` }));
  const open = view.ranks.flatMap((rank, index) => (rank === null ? [index] : []));
  const tray = open.length
    ? node("span", { class: "tray", "data-drop": "tray" }, t("To rank:"), " ", ...open.map(chipNode))
    : null;
  const empty = tiers.length ? null : node("span", { class: "hint" }, t("Nothing ranked yet"));
  const words = { class: "order lane", role: "group", "aria-label": t("Your ranking") };
  return node("div", words, ...parts, empty, tray);
}

// Pointer events, not HTML5 drag: they come from mouse, pen and touch alike.
function startDrag(event, index, chip) {
  if (view.busy || view.sent || event.button > 0) return;
  event.preventDefault();
  chip.setPointerCapture(event.pointerId);
  const ghost = node("span", { class: "chip ghost" }, chip.textContent);
  root.querySelector(".page").append(ghost);
  let target = null;
  const move = (at) => {
    ghost.style.transform = `translate(${at.clientX + 8}px, ${at.clientY - 40}px)`;
    const found = root.elementFromPoint(at.clientX, at.clientY)?.closest("[data-drop]");
    if (found === target) return;
    target?.classList.remove("over");
    target = found ?? null;
    target?.classList.add("over");
  };
  const end = (at) => {
    chip.removeEventListener("pointermove", move);
    ghost.remove();
    if (at.type === "pointerup" && target) drop(index, target.dataset.drop);
    else target?.classList.remove("over");
  };
  chip.addEventListener("pointermove", move);
  chip.addEventListener("pointerup", end, { once: true });
  chip.addEventListener("pointercancel", end, { once: true });
  move(event);
}

// Puts a response into a tier ("tier 1"), between tiers ("before 1") or back ("tray").
function drop(index, where) {
  const [kind, place] = where.split(" ");
  const tiers = tierLists().map((tier) => tier.filter((other) => other !== index));
  if (kind === "tier") tiers[Number(place)].push(index);
  if (kind === "before") tiers.splice(Number(place), 0, [index]);
  tiers
    .filter((tier) => tier.length)
    .forEach((tier, rank) => tier.forEach((each) => (view.ranks[each] = rank + 1)));
  if (kind === "tray") view.ranks[index] = null;
  settleRejected(index);
  changed();
}

// Moving one response says nothing about the bar: it takes the side it now stands on.
function settleRejected(moved) {
  view.rejected.delete(moved);
  const tiers = tierLists();
  const bar = barOf(tiers);
  if (bar !== null) tiers.slice(bar).flat().forEach((index) => view.rejected.add(index));
}

// X on a response: the bar comes above its tier, or goes below it if it was rejected.
function toggleRejected(index) {
  if (view.busy || view.sent) return;
  const tiers = tierLists();
  const own = tiers.findIndex((tier) => tier.includes(index));
  const put = !view.rejected.has(index);
  const affected = own === -1 ? [index] : put ? tiers.slice(own).flat() : tiers.slice(0, own + 1).flat();
  affected.forEach((each) => (put ? view.rejected.add(each) : view.rejected.delete(each)));
  changed();
}
