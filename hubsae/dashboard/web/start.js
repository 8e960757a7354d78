// Addresses, navigation, keys.

const PAGES = {
  "": overviewPage,
  features: listPage,
  feature: featurePage,
  texts: textsPage,
  together: togetherPage,
  circuit: circuitPage,
  pairs: pairsPage,
  pair: pairPage,
  try: tryPage,
  steer: steerPage,
};
const main = document.getElementById("main");
let about,
  live,
  current,
  visit = 0,
  searchNext = false;

// The address of a page of a dictionary.
function link(side, page = "", query = {}) {
  const text = new URLSearchParams(query).toString();
  return `#/${side ? `of/${side}/` : ""}${page}${text ? `?${text}` : ""}`;
}

function address() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const names = path.split("/");
  const side = names[0] === "of" ? Number(names.splice(0, 2)[1]) : 0;
  return { side, page: names[0] || "", rest: names.slice(1), query: Object.fromEntries(new URLSearchParams(query)) };
}

async function go() {
  const own = ++visit;
  document.body.classList.add("loading");
  main.setAttribute("aria-busy", "true");
  let page;
  try {
    const { side, page: name, rest, query } = address();
    if (!Object.hasOwn(PAGES, name) || !about.sides[side]) throw new Error("There is no such page.");
    page = await PAGES[name](side, rest, query);
  } catch (error) {
    page = {
      title: "Not found",
      body: [el("h1", null, "Nothing to show"), el("p", { class: "error", role: "alert" }, error.message)],
    };
  }
  if (own !== visit) return; // another page was asked for meanwhile
  document.getElementById("tip").hidden = true;
  current = page;
  main.replaceChildren(...filled(document.createDocumentFragment(), null, page.body).childNodes);
  main.removeAttribute("aria-busy");
  document.body.classList.remove("loading");
  document.title = `${page.title} · ${about.title}`;
  navigation();
  scrollTo(0, 0);
  if (own > 1) main.focus({ preventScroll: true });
  page.ready?.();
  if (searchNext) document.getElementById("search")?.focus();
  searchNext = false;
}

function navigation() {
  const { side, page } = address();
  const own = about.sides[side] || about.sides[0];
  const at = about.sides[side] ? side : 0;
  const items = [
    ["", "Overview"],
    ["features", "Features"],
  ];
  if (about.pairs) items.push(["pairs", "Pairs"]);
  if (own.has_cofiring) items.push(["together", "Together"]);
  if (own.has_texts) items.push(["texts", "Texts"]);
  if (about.circuits.length) items.push(["circuit", "Circuits"]);
  if (live.analyze?.[at]) items.push(["try", "Try a text"]);
  if (live.steer?.[at]) items.push(["steer", "Steer"]);
  const over = { feature: "features", pair: "pairs" };
  const here = (name) => (name === (over[page] || page) ? "page" : null);
  document.getElementById("home").textContent = about.title;
  const bar = document.getElementById("nav");
  bar.replaceChildren(
    ...items.map(([name, text]) =>
      el("a", { href: link(["pairs", "circuit"].includes(name) ? 0 : at, name), "aria-current": here(name) }, text),
    ),
  );
  const chosen = bar.querySelector("[aria-current]");
  if (chosen) bar.scrollLeft = chosen.offsetLeft - bar.offsetLeft - 40; // on a phone it is wider than the window
}

function onKey(event) {
  if (event.key === "Escape") {
    document.getElementById("tip").hidden = true;
    if (event.target.matches(FIELDS)) event.target.blur();
    return;
  }
  if (event.key === "/" && plainKey(event) && !event.target.matches(FIELDS)) {
    event.preventDefault();
    const search = document.getElementById("search");
    if (search) search.focus();
    else [location.hash, searchNext] = [link(address().side, "features"), true];
    return;
  }
  if (["Enter", " "].includes(event.key) && event.target.closest("a, button, summary")) return; // it has its own sense there
  if (plainKey(event)) current?.key?.(event);
}

// The dark style sheet is in force where the system is dark, until the button was used.
function startTheme() {
  const sheet = document.getElementById("dark");
  const store = (value) => kept("hubsae-theme", value, () => localStorage);
  const set = (theme) => (sheet.media = theme === "dark" ? "all" : "not all");
  if (store()) set(store());
  document.getElementById("theme").addEventListener("click", () => {
    const next = matchMedia(sheet.media).matches ? "light" : "dark";
    store(next);
    set(next);
  });
}

// The key for what costs compute comes with the address that the server printed, and does not stay in it.
function takeToken() {
  const found = /^#token=([\w-]+)$/.exec(location.hash);
  if (!found) return;
  kept("hubsae-token", found[1]);
  history.replaceState(null, "", "#/");
}

async function start() {
  startTheme();
  startTips();
  takeToken();
  try {
    [about, live] = await Promise.all([load("about"), load("live")]);
  } catch (error) {
    main.replaceChildren(el("p", { class: "error", role: "alert" }, `This page cannot be shown: ${error.message}`));
    return;
  }
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    main.focus();
  });
  addEventListener("hashchange", () => (takeToken(), go()));
  addEventListener("keydown", onKey);
  await go();
}

start();
