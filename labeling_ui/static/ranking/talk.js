// ---- Talking to the server -----------------------------------------------------------------

async function submit() {
  const mine = view;
  if (!mine || mine.busy || missing()) return;
  mine.busy = mine.sent = true; // from here on the ranking is fixed until the server answers
  clearTimeout(mine.retry);
  saveDraft();
  update();
  setState("saving", t("Saving…"));
  const answer = await call("rank_submit", {
    assignment_id: mine.card.assignment_id,
    submission_id: mine.submissionId,
    ...said(),
    active_seconds: Math.min(timer.seconds, 86400),
    wall_seconds: Math.min(Math.max(0, (Date.now() - mine.began) / 1000), 864000),
    moves: Math.min(mine.moves, 1000000),
    revise: Boolean(mine.revising),
  });
  mine.busy = false;
  if (answer.ok) {
    roundComplete = answer.data.round_complete;
    return finish(mine, answer.data.counted);
  }
  if (answer.code === "signed_out") return signIn();
  if (answer.code === "unavailable") {
    setState("problem", t("Not saved. {message} Trying again…", { message: answer.message }));
    mine.retry = setTimeout(() => view === mine && submit(), RETRY_MS);
  } else {
    mine.sent = false;
    mine.submissionId = newSubmissionId();
    saveDraft();
    update();
    setState("problem", t("Not saved: {message}", { message: answer.message }));
  }
  view.submit.disabled = false;
}

async function skip(reason) {
  const mine = view;
  mine.busy = true;
  update();
  setState("saving", t("Skipping…"));
  const answer = await call("rank_skip", { assignment_id: mine.card.assignment_id, reason });
  mine.busy = false;
  if (answer.ok) return finish(mine, true, true);
  if (answer.code === "signed_out") return signIn();
  update();
  setState("problem", t("Not skipped: {message}", { message: answer.message }));
}

async function finish(mine, counted, skipped = false) {
  dropDraft(mine.card.assignment_id);
  lastFinished = mine.card.assignment_id;
  const words = counted ? t("Saved") : t("Saved, kept aside: the round was complete or closed");
  setState("saved", words);
  if (!mine.revising) {
    counts.done += skipped ? 0 : 1;
    counts.left = Math.max(0, counts.left - (counts.left >= 200 ? 0 : 1));
  }
  const following = mine.revising ? aside : ahead;
  aside = mine.revising ? null : aside;
  if (!following) return next(words);
  if (!mine.revising) ahead = null;
  showCard({ ...following, done: counts.done, left: counts.left });
  setState("saved", words);
  prefetch();
}

function signIn() {
  window.location.assign("/sign-in");
}

// The card after this one, so that it is there at once.
async function prefetch() {
  const mine = view;
  if (!mine || mine.revising || ahead) return;
  const answer = await call("rank_next", { beside: mine.card.assignment_id });
  if (!answer.ok || view !== mine) return;
  const { card, done, left } = answer.data;
  if (card && card.assignment_id !== mine.card.assignment_id) ahead = answer.data;
  if (done !== undefined) counts = { ...counts, done, left };
}

async function next(words = "") {
  const answer = await call("rank_next", {});
  if (!answer.ok) {
    if (answer.code === "signed_out") return signIn();
    if (roundComplete) return showFinished(counts.done, words);
    const told = t("{message} Trying again…", { message: answer.message });
    showNotice(t("The next prompt did not come"), told);
    return later();
  }
  const { card, labeler, state, done } = answer.data;
  counts = { ...counts, labeler };
  if (card) {
    roundComplete = false; // it may be a card of the next round
    showCard(answer.data);
    if (words && !view.sent) setState("saved", words);
    return prefetch();
  }
  if (state === "guidelines") return showGuidelines(answer.data);
  if (state === "finished") return showFinished(done, words);
  const thanks = done ? t("You ranked {n}.", { n: done }) : "";
  if (state === "no_round") {
    showNotice(t("Nothing to rank yet"), t("No round is open. This page looks again by itself."));
  } else if (state === "paused") {
    const told = t("It goes on when the lead opens it again. This page looks again by itself.");
    showNotice(t("The round is paused"), told, thanks);
  } else {
    const { rankings_done: have, rankings_wanted: want } = answer.data;
    const told = t("{have} of {want} rankings are in; the rest is with other people.", { have, want });
    showNotice(t("Nothing left for you right now, thank you"), `${told} ${thanks}`);
  }
  later();
}

function showFinished(done, words) {
  const thanks = done ? t("You ranked {n}.", { n: done }) : "";
  showNotice(t("All done, thank you"), `${t("This round is complete.")} ${thanks}`, words);
}

function later() {
  setTimeout(() => lifetime.signal.aborted || view || next(), RETRY_MS);
}

// ---- Changing what was submitted -----------------------------------------------------------

function undo() {
  if (view && !view.busy && !view.sent && !view.revising && lastFinished) reopen(lastFinished);
}

async function reopen(assignmentId) {
  const from = view;
  if (from && (from.busy || from.sent)) return;
  const answer = await call("rank_reopen", { assignment_id: assignmentId });
  if (!answer.ok) {
    if (answer.code === "signed_out") return signIn();
    return view && setState("problem", answer.message);
  }
  const { judgements } = answer.data;
  if (from && !from.revising) {
    saveDraft();
    aside = from.payload;
  }
  const latest = judgements.at(-1);
  showCard({
    ...answer.data,
    done: counts.done,
    left: counts.left,
    revising: judgements.length,
    said: latest ? draftOf(latest) : undefined,
  });
}

function leaveEdit() {
  const back = aside;
  dropDraft(view.card.assignment_id, { tell: true });
  aside = null;
  view = null;
  if (back) showCard({ ...back, done: counts.done, left: counts.left });
  else next();
}
