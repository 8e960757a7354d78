// Parts of the data, each a script that calls hubsae.put(name, packed): scripts can be loaded from a file storage too.

const MOST_KEPT = 24; // parts of features in memory
const arrived = new Map();
const parts = new Map();
const scripts = window.trustedTypes
  ? window.trustedTypes.createPolicy("hubsae", { createScriptURL: checkedName })
  : { createScriptURL: checkedName };

window.hubsae = Object.freeze({ put: (name, packed) => arrived.set(name, packed) });

function checkedName(path) {
  if (!/^data\/([a-z0-9-]+\/)?[a-z0-9-]+\.js$/.test(path)) throw new TypeError(`${path} is no part of the data`);
  return path;
}

function load(name) {
  const known = parts.get(name);
  if (known) return known;
  const part = fetchPart(name);
  parts.set(name, part);
  part.catch(() => parts.delete(name));
  const shards = [...parts.keys()].filter((key) => key.includes("/features-"));
  if (shards.length > MOST_KEPT) parts.delete(shards[0]);
  return part;
}

async function fetchPart(name) {
  await new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = scripts.createScriptURL(`data/${name}.js`);
    script.addEventListener("load", () => (script.remove(), resolve()));
    script.addEventListener(
      "error",
      () => (
        script.remove(),
        reject(new Error(`data/${name}.js cannot be read: it is missing, or its server does not answer`))
      ),
    );
    document.head.append(script);
  });
  const packed = arrived.get(name);
  arrived.delete(name);
  try {
    return JSON.parse(await inflated(packed));
  } catch (error) {
    if (!window.DecompressionStream) throw new Error("this browser is too old to unpack the data", { cause: error });
    throw new Error(`data/${name}.js is damaged; the site has to be written again`, { cause: error });
  }
}

async function inflated(packed) {
  const letters = atob(packed);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Response(stream).text();
}

async function loadFeature(side, id) {
  const { shard_size: size } = about.sides[side];
  const shard = await load(`${side}/features-${Math.floor(id / size)}`);
  const feature = shard.features[id % size],
    { strings } = shard;
  const named = (list) => list.map(([other, score, count, name]) => ({ id: other, score, count, name: strings[name] }));
  return { ...feature, strings, cofiring: named(feature.cofiring), similar: named(feature.similar) };
}

async function ask(action, question) {
  const headers = { "Content-Type": "application/json", "X-Hubsae-Token": token() };
  const answer = await fetch(`api/${action}`, { method: "POST", headers, body: JSON.stringify(question) }).catch(() => {
    throw new Error("The local server does not answer: is it still running?");
  });
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error || `the server answered ${answer.status}`);
  return found;
}

// What the browser remembers under a key, after it was given a value, if there is one; null where it may not remember.
function kept(key, value, storage = () => sessionStorage) {
  try {
    if (value !== undefined) storage().setItem(key, value);
    return storage().getItem(key);
  } catch {
    return null;
  }
}

const token = () => kept("hubsae-token") || "";
