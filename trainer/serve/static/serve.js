// The page: what is asked is in the address and in history.state, and is shown from there.

const DEFAULT_NEIGHBOURS = 12;

const at = (id) => document.getElementById(id);
const fields = { class: at("class"), split: at("split"), neighbours: at("neighbours") };

// Images that were chosen, by the number that history.state holds: back finds them again.
const uploads = new Map();

let info;
let current = null; // AbortController of the search under way
let previewed = null; // object URL of the image shown as the query

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer.json();
  const content = await answer.json().catch(() => null);
  throw new Error(content?.error ?? `The server answers ${answer.status}.`);
}

async function send(file, path, signal) {
  const headers = { "Content-Type": "application/octet-stream" };
  try {
    return await ask(path, { method: "POST", body: file, headers, signal });
  } catch (error) {
    error.message = `${file.name}: ${error.message}`;
    throw error;
  }
}

// The query string that a search has in the API, or in the address of this page.
function parameters({ sourceId, filters, all = true }) {
  const given = new URLSearchParams();
  if (sourceId !== null) given.set("source_id", sourceId);
  for (const name of ["class", "split"]) if (filters[name]) given.set(name, filters[name]);
  if (all || filters.neighbours !== String(DEFAULT_NEIGHBOURS)) {
    given.set("neighbours", filters.neighbours);
  }
  return given;
}

function addressOf(sourceId, filters) {
  const given = parameters({ sourceId, filters, all: false }).toString();
  return given ? `/?${given}` : "/";
}

function filtersOfFields() {
  return {
    class: fields.class.value.trim(),
    split: fields.split.value,
    neighbours: fields.neighbours.value,
  };
}

function stateOfAddress() {
  const given = new URLSearchParams(location.search);
  return {
    sourceId: given.get("source_id"),
    upload: history.state?.upload ?? null,
    filters: {
      class: given.get("class") ?? "",
      split: given.get("split") ?? "",
      neighbours: given.get("neighbours") ?? String(DEFAULT_NEIGHBOURS),
    },
  };
}

function go({ sourceId = null, upload = null, filters = filtersOfFields() }) {
  history.pushState({ upload }, "", addressOf(sourceId, filters));
  return show();
}

// Shows what the address and history.state say; false if it could not, or another search began.
async function show() {
  current?.abort();
  const search = (current = new AbortController());
  const { sourceId, upload, filters } = stateOfAddress();
  setFields(filters);
  at("error").textContent = "";
  at("status").textContent = "Searching…";
  at("results").setAttribute("aria-busy", "true");
  try {
    await load({ sourceId, upload, filters, signal: search.signal });
    return true;
  } catch (error) {
    if (search.signal.aborted) return false;
    clear();
    at("error").textContent = error.message;
    return false;
  } finally {
    if (!search.signal.aborted) at("results").setAttribute("aria-busy", "false");
  }
}

function setFields(filters) {
  fields.class.value = filters.class;
  fields.neighbours.value = filters.neighbours;
  const known = [...fields.split.options].some((option) => option.value === filters.split);
  if (!known) fields.split.add(new Option(filters.split, filters.split));
  fields.split.value = filters.split;
}

async function load({ sourceId, upload, filters, signal }) {
  const path = `/api/neighbours?${parameters({ sourceId, filters })}`;
  if (sourceId !== null) {
    const found = await ask(path, { signal });
    showQuery({ name: sourceId, of: found.query, picture: pictureOf(sourceId) });
    showNeighbours(found.neighbours, { name: sourceId, of: found.query.class });
  } else if (uploads.has(upload)) {
    const file = uploads.get(upload);
    const name = file.name;
    const found = await send(file, path, signal);
    showQuery({ name, of: null, picture: URL.createObjectURL(file) });
    showNeighbours(found.neighbours, { name, of: null });
  } else {
    const { images } = await ask("/api/examples", { signal });
    showQuery(null);
    showResults(images, { title: "Or begin with one of these" });
    const lost = upload !== null;
    at("status").textContent = lost ? "That image is no longer here; choose it again." : "";
    document.title = "Similar images";
  }
}

function clear() {
  showQuery(null);
  showResults([], { title: "" });
  at("status").textContent = "";
}

function pictureOf(sourceId) {
  return `/api/picture?${new URLSearchParams({ source_id: sourceId, start: info.start })}`;
}

function showQuery(query) {
  if (previewed) URL.revokeObjectURL(previewed);
  previewed = query?.picture.startsWith("blob:") ? query.picture : null;
  at("query").hidden = !query;
  const image = at("query-image");
  if (!query) {
    image.removeAttribute("src");
    return;
  }
  image.src = query.picture;
  image.alt = query.name;
  at("query-name").textContent = query.name;
  at("query-of").textContent = [query.of?.class, query.of?.split].filter(Boolean).join(", ");
}

function showNeighbours(neighbours, { name, of }) {
  const number = neighbours.length;
  showResults(neighbours, { title: "Nearest images", of });
  const same = neighbours.filter((each) => of !== null && each.class === of).length;
  const found = number > 1 ? `The ${number} nearest images` : number ? "1 image" : "No other image";
  at("status").textContent = of !== null && number ? `${found}, ${same} of its class` : found;
  document.title = `${name} – Similar images`;
}

function showResults(images, { title, of = null }) {
  at("results-title").textContent = title;
  at("results").replaceChildren(
    ...images.map((each, place) => result(each, { place: place + 1, of })),
  );
}

function element(tag, { class: name, text = "", ...attributes } = {}) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.textContent = text;
  return Object.assign(made, attributes);
}

function result(each, { place, of }) {
  const link = element("a", {
    href: addressOf(each.source_id, filtersOfFields()),
    title: each.source_id,
  });
  link.dataset.sourceId = each.source_id;
  const picture = element("img", {
    alt: each.source_id,
    loading: "lazy",
    draggable: false,
    src: pictureOf(each.source_id),
  });
  const facts = element("span", { class: "facts" });
  if (each.distance !== undefined) {
    facts.append(
      element("span", { class: "rank", text: `${place}.` }),
      element("span", {
        class: "distance",
        text: each.distance.toFixed(3),
        title: "squared Euclidean distance, 0 to 4",
      }),
    );
  }
  link.append(picture, facts, element("span", { class: "class", text: each.class ?? each.source_id }));
  if (of !== null && each.class === of) {
    link.classList.add("same");
    link.append(element("span", { class: "unseen", text: ", same class" }));
  }
  const item = element("li");
  item.append(link);
  return item;
}

async function search(file) {
  await started;
  if (!file || !info) return;
  if (file.size > info.max_upload_bytes) {
    current?.abort();
    clear();
    const most = info.max_upload_bytes / 1e6;
    at("error").textContent = `${file.name}: the file is larger than ${most} MB`;
    return;
  }
  const upload = Date.now() + Math.random();
  uploads.set(upload, file);
  go({ upload });
}

at("file").addEventListener("change", ({ target }) => {
  search(target.files[0]);
  target.value = ""; // so that the same file may be chosen again
});

document.addEventListener("paste", ({ clipboardData }) => search(clipboardData.files[0]));

const hasFile = (event) => event.dataTransfer?.types.includes("Files");

document.addEventListener("dragover", (event) => {
  if (!hasFile(event)) return;
  event.preventDefault();
  document.body.classList.add("dragged");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragged");
});
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dragged");
  if (!hasFile(event)) return;
  event.preventDefault();
  search(event.dataTransfer.files[0]);
});

at("search").addEventListener("submit", (event) => event.preventDefault());
at("search").addEventListener("change", ({ target }) => {
  if (!Object.values(fields).includes(target) || !at("search").reportValidity()) return;
  const { sourceId, upload } = stateOfAddress();
  go({ sourceId, upload });
});

at("results").addEventListener("click", async (event) => {
  const link = event.target.closest("a");
  const elsewhere = event.ctrlKey || event.metaKey || event.shiftKey || event.altKey;
  if (!link || elsewhere) return;
  event.preventDefault();
  // The link that had the focus is gone then.
  if (await go({ sourceId: link.dataset.sourceId })) at("results-title").focus();
});

at("home").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go({ filters: { class: "", split: "", neighbours: String(DEFAULT_NEIGHBOURS) } });
});

window.addEventListener("popstate", show);

async function start() {
  let classes;
  try {
    [info, { classes }] = await Promise.all([ask("/api/info"), ask("/api/classes")]);
  } catch (error) {
    at("error").textContent = error.message;
    return;
  }
  at("about").textContent =
    `${info.images.toLocaleString()} images, ${classes.length.toLocaleString()} classes`;
  at("classes").replaceChildren(...classes.map((name) => element("option", { value: name })));
  for (const split of info.splits) fields.split.add(new Option(split, split));
  fields.class.disabled = !classes.length;
  fields.split.disabled = !info.splits.length;
  fields.neighbours.max = info.max_neighbours;
  await show();
}

const started = start();
