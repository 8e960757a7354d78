// What the local server computes: the features of a text, and the model's words with features changed.

const typed = { text: "", prompt: "" };

function asked(form, out, question) {
  const button = form.querySelector("button[type=submit]");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.disabled) return;
    button.disabled = true;
    out.setAttribute("aria-busy", "true");
    try {
      out.replaceChildren(await question());
    } catch (error) {
      out.replaceChildren(el("p", { class: "error", role: "alert" }, error.message));
    }
    out.removeAttribute("aria-busy");
    button.disabled = false;
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

function noToken() {
  return token() ? null : el("p", { class: "error" }, "This page was opened without its key: open the address that hubsae printed when it started.");
}

async function tryPage(side) {
  const out = el("div", { class: "answer", "aria-live": "polite" });
  const area = el("textarea", { rows: 4, maxlength: live.max_letters, "aria-label": "text", placeholder: "Type a text" }, typed.text);
  const form = el("form", { class: "ask" }, area, el("button", { type: "submit" }, "Show its features"), el("small", null, "Ctrl + Enter"));
  area.addEventListener("input", () => (typed.text = area.value));
  asked(form, out, async () => textView(side, await ask("analyze", { side, text: area.value })));
  return { title: "Try a text", body: [el("h1", null, "Features of your text"), noToken(), form, out], ready: () => area.focus() };
}

async function steerPage(side, _, query) {
  const f = await loadList(side);
  const out = el("div", { class: "answer", "aria-live": "polite" });
  const chosen = el("div", { class: "strengths" });
  const prompt = el("textarea", { rows: 3, maxlength: live.max_letters, "aria-label": "prompt", placeholder: "A text to go on with" }, typed.prompt);
  const length = el("input", { type: "number", min: 1, max: live.max_tokens, value: 30, "aria-label": "tokens" });
  prompt.addEventListener("input", () => (typed.prompt = prompt.value));
  const add = () => chosen.append(strengthRow(side, f, ""));
  const form = el(
    "form",
    { class: "ask" },
    chosen,
    el("p", { class: "actions" }, el("button", { type: "button", onclick: add }, "one more feature")),
    prompt,
    el("div", { class: "filters" }, el("label", null, "new tokens ", length), el("button", { type: "submit" }, "Compare"), el("small", null, "Ctrl + Enter")),
  );
  chosen.append(strengthRow(side, f, query.feature ?? ""));
  asked(form, out, async () => {
    const changes = [...chosen.children].filter((row) => row.querySelector(".feature-id").value !== "").map(changeOf);
    const answer = await ask("steer", { side, prompt: prompt.value, max_tokens: Number(length.value), changes });
    return el("div", { class: "two" }, continuation("As it is", prompt.value, answer.before), continuation("Changed", prompt.value, answer.after));
  });
  return {
    title: "Steer",
    body: [
      el("h1", null, "Steering bench"),
      el("p", { class: "lead" }, "Change features while the model writes, and read both side by side. Strengths are in units of what a feature typically does."),
      noToken(), form, out,
    ],
    ready: () => prompt.focus(),
  };
}

const MODES = { add: "add everywhere", set: "set to", amplify: "amplify where it fires, by", ablate: "ablate" };

function strengthRow(side, f, id) {
  const own = about.sides[side];
  const feature = el("input", { class: "feature-id", type: "number", min: 0, max: own.n_features - 1, value: id, placeholder: "number", "aria-label": "feature" });
  const name = el("bdi", { class: "name" });
  const mode = el("select", { class: "mode", "aria-label": "how" }, Object.entries(MODES).map(([value, text]) => el("option", { value }, text)));
  const range = el("input", { type: "range", min: -20, max: 20, step: 0.5, value: 4, "aria-label": "strength" });
  const strength = el("input", { class: "strength", type: "number", step: "any", value: 4, "aria-label": "strength in numbers" });
  const update = () => {
    name.textContent = feature.value === "" ? "" : nameOf(f, Number(feature.value)) || (f.n[Number(feature.value)] ? "" : "never fires");
    range.hidden = strength.hidden = mode.value === "ablate";
  };
  range.addEventListener("input", () => (strength.value = range.value));
  strength.addEventListener("input", () => (range.value = strength.value));
  for (const input of [feature, mode]) input.addEventListener("input", update);
  const row = el("div", { class: "strength-row" }, el("label", null, "feature ", feature), name, mode, range, strength);
  row.append(el("button", { type: "button", "aria-label": "leave it out", onclick: () => row.remove() }, "×"));
  update();
  return row;
}

function changeOf(row) {
  const value = (name) => row.querySelector(name).value;
  return { feature: Number(value(".feature-id")), mode: value(".mode"), strength: Number(value(".strength")) };
}

function continuation(title, prompt, { text, next }) {
  const most = next.length ? next[0][1] : 1;
  return el(
    "section",
    null,
    el("h2", null, title),
    el("p", { class: "passage" }, words(prompt, { class: "prompt" }), words(text.replaceAll("⏎", "⏎\n"), { class: "said" })),
    el("h3", null, "Next token"),
    meters(next.map(([next_, probability]) => [words(visible(next_), { class: "token" }), probability / most, percent(probability)])),
  );
}
