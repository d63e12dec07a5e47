// ---- Drafts: in this browser at once, on the server a moment later --------------------------

const SYNC_MS = 1500;
let pending = null; // what the server has not got yet
let syncing = 0;

function saveDraft() {
  if (!view) return;
  const { ranks, grades, unsafe, scores, rationale, moves, began, revising } = view;
  const said = { ranks, grades, unsafe, scores, rationale, moves, began, revising };
  const draft = { ...said, rejected: [...view.rejected], seconds: timer.seconds, edited: Date.now() };
  const { assignment_id: card } = view.card;
  keep("draft-" + card, { ...draft, submissionId: view.submissionId, sent: view.sent });
  pending = { assignment_id: card, draft: structuredClone(draft) };
  clearTimeout(syncing);
  syncing = setTimeout(syncDraft, SYNC_MS);
}

// What fails here is sent with the next change; this browser has it meanwhile.
function syncDraft() {
  clearTimeout(syncing);
  const sent = pending;
  pending = null;
  if (sent) call("rank_draft", sent);
}

// A card that is submitted, skipped or left as it was has no draft any more; the server drops
// its own with the first two.
function dropDraft(assignmentId, { tell = false } = {}) {
  keep("draft-" + assignmentId, null);
  clearTimeout(syncing);
  pending = null;
  if (tell) call("rank_draft", { assignment_id: assignmentId, draft: null });
}

// The later of this browser's draft and the server's, if it is one of this version of the card.
function readDraft({ card, draft, revising = 0 }) {
  const found = [kept("draft-" + card.assignment_id), draft]
    .filter((each) => each?.ranks?.length === card.responses.length)
    .filter((each) => (each.revising ?? 0) === revising);
  return found.sort((a, b) => (b.edited ?? 0) - (a.edited ?? 0))[0];
}

for (const kind of ["visibilitychange", "pagehide"]) {
  const leaving = () => document.visibilityState === "hidden" && syncDraft();
  document.addEventListener(kind, leaving, { signal: lifetime.signal });
}
