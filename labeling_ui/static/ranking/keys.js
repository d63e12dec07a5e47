// ---- Keys ----------------------------------------------------------------------------------

function onKey(event) {
  if (!view || root.querySelector("dialog[open]") || event.metaKey) return;
  const origin = event.composedPath()[0];
  if (origin.closest?.("textarea, select, input")) {
    if (event.key === "Enter" && event.ctrlKey) submit();
    if (event.key === "Escape") focusResponse(view.current);
    return;
  }
  if (event.altKey) {
    if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      moveCurrent(event.key === "ArrowUp" ? -1 : 1);
      event.preventDefault();
    }
    return;
  }
  const count = view.ranks.length;
  const onButton = origin.closest("button, a") !== null;
  const digit = /^[1-9]$/.test(event.key) ? Number(event.key) : 0;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "Enter" && (event.ctrlKey || !onButton)) submit();
  else if (event.ctrlKey && key === "z") undo();
  else if (event.ctrlKey) return;
  else if (digit && digit <= count) rankCurrent(digit);
  else if (key === "Backspace" || key === "Delete") setRank(view.current, null);
  else if (key === "ArrowRight") focusResponse((view.current + 1) % count);
  else if (key === "ArrowLeft") focusResponse((view.current + count - 1) % count);
  else if (key === "s") openSkip();
  else if (key === "x") toggleRejected(view.current);
  else if (key === "u") openUnsafe(view.current);
  else if (key === "v") toggleRaw();
  else if (key === "=") tieWithAbove();
  else if (key === "g") gradeCurrent();
  else if (key === "r" && view.area) view.area.focus();
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

function ownTier() {
  return tierLists().findIndex((tier) => tier.includes(view.current));
}

function tieWithAbove() {
  const own = ownTier();
  if (own > 0 && !view.sent) drop(view.current, `tier ${own - 1}`);
}

// One tier up or down: out of a tie first, past a neighbour next.
function moveCurrent(step) {
  const tiers = tierLists();
  const own = ownTier();
  if (own === -1 || view.busy || view.sent) return;
  const alone = tiers[own].length === 1;
  const place = step < 0 ? own - (alone ? 1 : 0) : own + (alone ? 2 : 1);
  if (place >= 0 && place <= tiers.length) drop(view.current, `before ${place}`);
}

// How much better the current response's tier is than the one below it.
function gradeCurrent() {
  const tiers = tierLists();
  const own = ownTier();
  if (own !== -1 && own < tiers.length - 1) cycleGrade(tiers[own], tiers[own + 1]);
}

async function begin() {
  const style = new CSSStyleSheet();
  style.replaceSync(await (await fetch("/ranking_page.css")).text());
  root.adoptedStyleSheets = [style];
  await next();
}

document.addEventListener("keydown", onKey, { signal: lifetime.signal });
begin();
