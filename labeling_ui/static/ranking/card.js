// ---- What is on the page -------------------------------------------------------------------

function showPage(progress, ...content) {
  const signOut = node(
    "form",
    { method: "post", action: "/sign-out" },
    node("button", { class: "link", type: "submit" }, t("Sign out")),
  );
  const tools = node(
    "p",
    { class: "who" },
    button("link", t("My work"), openHistory),
    button("link", t("中文"), switchLanguage, { lang: language === "zh" ? "en" : "zh" }),
    node("bdi", {}, counts.labeler),
    signOut,
  );
  const header = node(
    "header",
    { class: "header" },
    node("h1", {}, t("Rank responses")),
    node("p", { class: "progress" }, progress),
    tools,
  );
  const main = node("main", { class: "content" }, header, ...content);
  const page = node(
    "div",
    { class: "page", lang: language === "zh" ? "zh-CN" : "en" },
    node("div", { class: "scroll" }, main),
  );
  root.replaceChildren(page);
  return page;
}

function showNotice(title, ...text) {
  view = null;
  const words = text.map((line) => node("p", {}, line));
  const notice = { class: "notice", role: "status" };
  showPage("", node("section", notice, node("h2", { tabindex: "-1" }, title), ...words));
}

function showGuidelines({ version, texts }) {
  view = null;
  const tree = language === "zh" && texts.zh.length ? texts.zh : texts.en;
  const accept = button("primary", t("I have read this and accept it"), async () => {
    accept.disabled = true;
    await call("rank_accept", { version });
    next();
  });
  const words = node("div", { class: "text rich" }, ...tree.map((part) => treeNode(part)));
  const heading = node("h2", { tabindex: "-1" }, `${t("Guidelines")} ${version}`);
  showPage("", node("section", { class: "notice guidelines" }, heading, words, accept));
}

// Raw: every character that has no look of its own is shown by its code point.
function rawText(text) {
  return text.replace(
    /[\u00a0\u034f\u115f\u1160\u17b4\u17b5\u2000-\u200d\u202f\u205f\u3000\u3164\ufe00-\ufe0f]/g,
    (found) => `[U+${found.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}]`,
  );
}

function textNode(part, lang) {
  const shown = view?.raw
    ? [node("p", {}, rawText(part.text))]
    : part.tree.map((child) => treeNode(child));
  return node("div", { class: "text" + (view?.raw ? " raw" : " rich"), dir: "auto", lang }, ...shown);
}

function promptNode(card) {
  const speaker = { user: t("Person"), assistant: t("Assistant"), system: t("Instruction") };
  const many = card.messages.length > 1;
  const turns = card.messages.map((message) =>
    node(
      "div",
      { class: "turn " + message.role },
      many ? node("p", { class: "speaker" }, speaker[message.role]) : null,
      textNode(message, card.language),
    ),
  );
  const title = many ? t("Conversation") : t("Prompt");
  return node("section", { class: "prompt", "aria-label": title }, node("h2", {}, title), ...turns);
}

function responseNode(card, index) {
  const { label, text, cut_off: cutOff } = card.responses[index];
  const ranks = card.responses.map((_, place) =>
    button(
      "rank",
      String(place + 1),
      (event) => {
        setRank(index, place + 1);
        if (event.detail > 0) focusResponse(index); // by pointer: keys go on from the response
      },
      { "aria-pressed": "false", "aria-label": t("Rank {n} for response {label}", { n: place + 1, label }) },
    ),
  );
  const shown = text
    ? textNode(card.responses[index], card.language)
    : node("p", { class: "text empty" }, t("(empty response)"));
  if (cutOff) shown.append(" ", node("span", { class: "cut" }, t("(cut off)")));
  return node(
    "article",
    {
      class: "response",
      "aria-label": t("Response {label}", { label }),
      tabindex: index ? "-1" : "0",
      onfocusin: () => (view.current = index),
    },
    node("h3", {}, label),
    node("div", { class: "body" }, shown),
    node("div", { class: "ranks", role: "group", "aria-label": t("Rank of {label}", { label }) }, ...ranks),
    node(
      "div",
      { class: "marks" },
      button("mark reject", t("Unacceptable"), () => toggleRejected(index), { "aria-pressed": "false" }),
      button("mark unsafe", t("Unsafe"), () => openUnsafe(index), { "aria-pressed": "false" }),
    ),
    criteriaNode(index),
  );
}

function criteriaNode(index) {
  const { criteria } = view.asked;
  if (!criteria.length) return null;
  const fields = criteria.map((name) => {
    const choices = ["", 1, 2, 3, 4, 5].map((value) =>
      node("option", { value, selected: view.scores[`${index} ${name}`] === value ? "" : null }, String(value || "–")),
    );
    const onchange = (event) => {
      view.scores[`${index} ${name}`] = Number(event.target.value) || undefined;
      saveDraft();
    };
    return node("label", {}, name, node("select", { onchange }, ...choices));
  });
  return node("div", { class: "criteria" }, ...fields);
}

function rationaleNode() {
  const { rationale } = view.asked;
  if (rationale === "off") return null;
  const words = rationale === "required" ? t("Why? (needed)") : t("Why? (optional)");
  const area = node("textarea", { rows: "2", maxlength: "4000", dir: "auto", oninput });
  area.value = view.rationale;
  function oninput() {
    view.rationale = area.value;
    saveDraft();
    update();
  }
  view.area = area;
  return node("label", { class: "rationale" }, words, area);
}

function keysNode(highest) {
  const key = (...names) => names.map((name) => node("kbd", {}, name));
  const line = (words, ...names) => node("span", {}, ...key(...names), " ", t(words));
  return node(
    "p",
    { class: "keys" },
    node("span", {}, ...key("1"), "–", ...key(String(highest)), " ", t("rank, then the next response")),
    line("choose a response", "←", "→"),
    line("clear", "Backspace"),
    line("submit", "Enter"),
    line("skip", "S"),
    line("tie with the one above", "="),
    line("move up or down", "Alt ↑", "Alt ↓"),
    view.asked.strength === "off" ? null : line("how much better", "G"),
    line("unacceptable", "X"),
    line("unsafe", "U"),
    line("raw text", "V"),
    line("undo last", "Ctrl Z"),
  );
}

// ---- Dialogs -------------------------------------------------------------------------------

function openDialog(title, text, choices, close = t("Cancel")) {
  root.querySelector("dialog")?.remove();
  const dialog = node(
    "dialog",
    { class: "dialog", "aria-label": title, onclose: () => dialog.remove() },
    node("h2", {}, title),
    text ? node("p", {}, text) : null,
    ...choices.map(([words, act]) =>
      button("secondary", words, () => {
        dialog.close();
        act();
      }),
    ),
    button("link", close, () => dialog.close()),
  );
  root.querySelector(".page").append(dialog);
  dialog.showModal();
}

function openSkip() {
  if (!view || view.busy || view.sent || view.revising) return;
  const reasons = view.payload.skip_reasons.map(([code, words]) => [t(words), () => skip(code)]);
  const told = t("It goes to someone else and does not come back to you.");
  openDialog(t("Why skip this prompt?"), told, reasons);
}

function openUnsafe(index) {
  if (view.busy || view.sent) return;
  const { label } = view.card.responses[index];
  const choices = view.payload.categories.map((category) => [categoryWords(category), () => setUnsafe(index, category)]);
  if (view.unsafe[index]) choices.push([t("It is not unsafe"), () => setUnsafe(index, null)]);
  openDialog(t("Why is {label} unsafe?", { label }), "", choices);
}

async function openHistory() {
  const answer = await call("rank_history", {});
  if (!answer.ok) return;
  const rows = answer.data.finished.map((card) => {
    const when = new Date(card.finished_ms).toLocaleString(language === "zh" ? "zh-CN" : "en-GB");
    const state = card.skipped ? t("skipped") : t("version {n}", { n: card.revisions });
    return [`${card.excerpt} (${when}, ${state})`, () => reopen(card.assignment_id)];
  });
  const told = rows.length ? t("Choose one to change it. Every version is kept.") : t("Nothing yet.");
  openDialog(t("What you ranked"), told, rows, t("Close"));
}
