// What the local server computes: the features of a text, and the model's words with features changed.

const typed = { text: kept("hubsae-text") || "", prompt: kept("hubsae-prompt") || "", answers: {} };

// A form whose question is `read()` and whose answer is shown in `out`, by `answerTo(question)`. An answer is kept under
// its name, and marked where the form says something else by now; what is returned looks whether it does.
function asked(form, out, name, read, answerTo) {
  const button = form.querySelector("button[type=submit]");
  let shown = typed.answers[name];
  const look = () => out.classList.toggle("stale", Boolean(shown) && shown.question !== JSON.stringify(read()));
  const show = () => {
    if (shown) out.replaceChildren(shown.node);
    look();
  };
  form.addEventListener("input", look);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.disabled) return;
    button.disabled = true;
    out.setAttribute("aria-busy", "true");
    const question = read();
    shown = { question: JSON.stringify(question) };
    try {
      shown.node = await answerTo(question);
      typed.answers[name] = shown;
    } catch (error) {
      shown.node = el("p", { class: "error", role: "alert" }, error.message);
    }
    show();
    out.removeAttribute("aria-busy");
    button.disabled = false;
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  return show;
}

function remember(name, value) {
  typed[name] = value;
  kept(`hubsae-${name}`, value);
}

function noToken(side) {
  if (!live.analyze?.[side])
    throw new Error("This needs a model: it is there where hubsae serves the site on your own machine.");
  return token()
    ? null
    : el(
        "p",
        { class: "error" },
        "This page was opened without its key: open the address that hubsae printed when it started.",
      );
}

async function tryPage(side) {
  const warning = noToken(side);
  const out = el("div", { class: "answer", "aria-live": "polite" });
  const area = el(
    "textarea",
    { rows: 4, maxlength: live.max_letters, "aria-label": "text", placeholder: "Type a text" },
    typed.text,
  );
  const form = el(
    "form",
    { class: "ask" },
    area,
    el("button", { type: "submit" }, "Show its features"),
    el("small", null, "Ctrl + Enter"),
  );
  area.addEventListener("input", () => remember("text", area.value));
  const show = asked(
    form,
    out,
    `try-${side}`,
    () => ({ side, text: area.value }),
    async (question) => textView(side, await ask("analyze", question)),
  );
  return {
    title: "Try a text",
    body: [el("h1", null, "Features of your text"), warning, form, out],
    ready: () => {
      show();
      area.focus();
    },
  };
}

async function steerPage(side, _, query) {
  const warning = noToken(side);
  const f = await loadList(side);
  const out = el("div", { class: "answer", "aria-live": "polite" });
  const chosen = el("div", { class: "strengths" });
  const prompt = el(
    "textarea",
    {
      rows: 3,
      maxlength: live.max_letters,
      required: true,
      "aria-label": "prompt",
      placeholder: "A text to go on with",
    },
    typed.prompt,
  );
  const length = el("input", {
    type: "number",
    min: 1,
    max: live.max_tokens,
    value: 30,
    required: true,
    "aria-label": "tokens",
  });
  const changes = () => [...chosen.children].map(changeOf).filter((change) => !Number.isNaN(change.feature));
  // The address holds what is changed, so that it can be kept and shared.
  const changed = () => {
    const text = changes()
      .map(({ feature, mode, strength }) => [feature, mode, strength].join(":"))
      .join(",");
    history.replaceState(null, "", link(side, "steer", text ? { changes: text } : {}));
    form.dispatchEvent(new Event("input"));
  };
  const add = (change) => chosen.appendChild(strengthRow(side, f, change, changed));
  prompt.addEventListener("input", () => remember("prompt", prompt.value));
  const more = el(
    "button",
    { type: "button", onclick: () => add({}).querySelector(".feature-id").focus() },
    "one more feature",
  );
  const form = el(
    "form",
    { class: "ask" },
    chosen,
    el("p", { class: "actions" }, more),
    prompt,
    el(
      "div",
      { class: "filters" },
      el("label", null, "new tokens ", length),
      el("button", { type: "submit" }, "Compare"),
      el("small", null, "Ctrl + Enter"),
    ),
  );
  for (const change of changesIn(query)) add(change);
  if (!chosen.children.length) add({});
  const read = () => ({ side, prompt: prompt.value, max_tokens: Number(length.value), changes: changes() });
  const show = asked(form, out, `steer-${side}`, read, async (question) => {
    const { before, after } = await ask("steer", question);
    const texts = [continuation("As it is", question.prompt, before), continuation("Changed", question.prompt, after)];
    return el("div", { class: "two" }, texts);
  });
  return {
    title: "Steer",
    body: [
      el("h1", null, "Steering bench"),
      el(
        "p",
        { class: "lead" },
        "Change features while the model writes, and read both side by side. What is added or set is in units of what a feature typically does.",
      ),
      warning,
      form,
      out,
    ],
    ready: () => {
      show();
      prompt.focus();
    },
  };
}

const MODES = {
  add: "add everywhere",
  set: "set everywhere to",
  amplify: "where it fires, multiply by",
  ablate: "ablate",
};

function changesIn({ feature, changes = "" }) {
  const found = changes
    .split(",")
    .map((text) => text.split(":"))
    .filter(([id]) => /^\d+$/.test(id));
  const rows = found.map(([id, mode, strength]) => ({ feature: id, mode, strength }));
  return /^\d+$/.test(feature) ? [{ feature }, ...rows] : rows;
}

function strengthRow(side, f, change, changed) {
  const own = about.sides[side];
  const feature = el("input", {
    class: "feature-id",
    type: "number",
    min: 0,
    max: own.n_features - 1,
    value: change.feature ?? "",
    placeholder: "number",
    "aria-label": "feature",
  });
  const name = el("bdi", { class: "name" });
  const mode = el(
    "select",
    { class: "mode", "aria-label": "how" },
    Object.entries(MODES).map(([value, text]) => el("option", { value, selected: value === change.mode }, text)),
  );
  const range = el("input", {
    type: "range",
    min: -20,
    max: 20,
    step: 0.5,
    value: change.strength ?? 4,
    "aria-label": "strength",
  });
  const strength = el("input", {
    class: "strength",
    type: "number",
    step: "any",
    value: change.strength ?? 4,
    "aria-label": "strength in numbers",
  });
  const unit = el("small", { class: "unit" });
  const named = (id) =>
    id === ""
      ? ""
      : !(id < own.n_features)
        ? "there is no such feature"
        : nameOf(f, id) || (f.n[id] ? "" : "never fires");
  const update = () => {
    name.textContent = named(feature.value === "" ? "" : Number(feature.value));
    range.hidden = strength.hidden = unit.hidden = mode.value === "ablate";
    strength.required = mode.value !== "ablate";
    unit.textContent = mode.value === "amplify" ? "times its value" : "× typical";
  };
  range.addEventListener("input", () => (strength.value = range.value));
  strength.addEventListener("input", () => (range.value = strength.value));
  const row = el(
    "div",
    { class: "strength-row" },
    el("label", null, "feature ", feature),
    name,
    mode,
    range,
    strength,
    unit,
  );
  row.append(
    el("button", { type: "button", "aria-label": "leave it out", onclick: () => (row.remove(), changed()) }, "×"),
  );
  row.addEventListener("input", () => (update(), changed()));
  update();
  return row;
}

function changeOf(row) {
  const value = (name) => row.querySelector(name).value;
  const feature = value(".feature-id") === "" ? NaN : Number(value(".feature-id"));
  return { feature, mode: value(".mode"), strength: Number(value(".strength")) };
}

function continuation(title, prompt, { text, next }) {
  const most = next.length ? next[0][1] : 1;
  return el(
    "section",
    null,
    el("h2", null, title),
    el(
      "p",
      { class: "passage" },
      words(prompt, { class: "prompt" }),
      words(text.replaceAll("⏎", "⏎\n"), { class: "said" }),
    ),
    el("h3", null, "Next token"),
    meters(
      next.map(([next_, probability]) => [
        words(visible(next_), { class: "token" }),
        probability / most,
        percent(probability),
      ]),
    ),
  );
}
