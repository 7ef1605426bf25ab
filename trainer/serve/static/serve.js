// The search page. Its address and history.state hold the search that the page shows.

const DEFAULT_NEIGHBOURS = 12;

const byId = (id) => document.getElementById(id);
const fields = { class: byId("class"), split: byId("split"), neighbours: byId("neighbours") };

// The image files that the user chose, by number. history.state holds the number of the file, so
// that going back finds it again.
const uploads = new Map();

let info;
let current = null; // AbortController of the current search
let previewed = null; // object URL of the file that is shown as the query

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

// The query string of a search. The API needs all parameters; the address omits the default number.
function parameters({ sourceId, filters, all = true }) {
  const query = new URLSearchParams();
  if (sourceId !== null) query.set("source_id", sourceId);
  for (const name of ["class", "split"]) if (filters[name]) query.set(name, filters[name]);
  if (all || filters.neighbours !== String(DEFAULT_NEIGHBOURS)) {
    query.set("neighbours", filters.neighbours);
  }
  return query;
}

function addressOf(sourceId, filters) {
  const query = parameters({ sourceId, filters, all: false }).toString();
  return query ? `/?${query}` : "/";
}

function filtersOfFields() {
  return {
    class: fields.class.value.trim(),
    split: fields.split.value,
    neighbours: fields.neighbours.value,
  };
}

function stateOfAddress() {
  const query = new URLSearchParams(location.search);
  return {
    sourceId: query.get("source_id"),
    upload: history.state?.upload ?? null,
    filters: {
      class: query.get("class") ?? "",
      split: query.get("split") ?? "",
      neighbours: query.get("neighbours") ?? String(DEFAULT_NEIGHBOURS),
    },
  };
}

function go({ sourceId = null, upload = null, filters = filtersOfFields() }) {
  history.pushState({ upload }, "", addressOf(sourceId, filters));
  return show();
}

// Runs the search that the address and history.state hold, and shows its result. Returns false if
// the search failed, or if another search began in the meantime.
async function show() {
  current?.abort();
  const search = (current = new AbortController());
  const { sourceId, upload, filters } = stateOfAddress();
  setFields(filters);
  byId("error").textContent = "";
  byId("status").textContent = "Searching…";
  byId("results").setAttribute("aria-busy", "true");
  try {
    await load({ sourceId, upload, filters, signal: search.signal });
    return true;
  } catch (error) {
    if (search.signal.aborted) return false;
    clear();
    byId("error").textContent = error.message;
    return false;
  } finally {
    if (!search.signal.aborted) byId("results").setAttribute("aria-busy", "false");
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
    const { query, neighbours } = await ask(path, { signal });
    showQuery({ name: sourceId, image: query, picture: pictureOf(sourceId) });
    showNeighbours(neighbours, { name: sourceId, queryClass: query.class });
  } else if (uploads.has(upload)) {
    const file = uploads.get(upload);
    const name = file.name;
    const { neighbours } = await send(file, path, signal);
    showQuery({ name, image: null, picture: URL.createObjectURL(file) });
    showNeighbours(neighbours, { name, queryClass: null });
  } else {
    const { images } = await ask("/api/examples", { signal });
    showQuery(null);
    showResults(images, { title: "Or begin with one of these images" });
    const lost = upload !== null;
    byId("status").textContent = lost ? "This page no longer has the image. Choose it again." : "";
    document.title = "Similar images";
  }
}

function clear() {
  showQuery(null);
  showResults([], { title: "" });
  byId("status").textContent = "";
}

function pictureOf(sourceId) {
  return `/api/picture?${new URLSearchParams({ source_id: sourceId, start: info.start })}`;
}

function showQuery(query) {
  if (previewed) URL.revokeObjectURL(previewed);
  previewed = query?.picture.startsWith("blob:") ? query.picture : null;
  byId("query").hidden = !query;
  const image = byId("query-image");
  if (!query) {
    image.removeAttribute("src");
    return;
  }
  image.src = query.picture;
  image.alt = query.name;
  byId("query-name").textContent = query.name;
  const facts = [query.image?.class, query.image?.split];
  byId("query-of").textContent = facts.filter(Boolean).join(", ");
}

function showNeighbours(neighbours, { name, queryClass }) {
  const number = neighbours.length;
  showResults(neighbours, { title: "Nearest images", queryClass });
  const text = number > 1 ? `The ${number} nearest images` : number ? "1 image" : "No other image";
  const same = neighbours.filter((each) => each.class === queryClass).length;
  const known = queryClass !== null && number;
  byId("status").textContent = known ? `${text}, ${same} of its class` : text;
  document.title = `${name} – Similar images`;
}

function showResults(images, { title, queryClass = null }) {
  byId("results-title").textContent = title;
  byId("results").replaceChildren(
    ...images.map((each, index) => result(each, { rank: index + 1, queryClass })),
  );
}

function element(tag, { class: name, text = "", ...attributes } = {}) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.textContent = text;
  return Object.assign(made, attributes);
}

function result(each, { rank, queryClass }) {
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
      element("span", { class: "rank", text: `${rank}.` }),
      element("span", {
        class: "distance",
        text: each.distance.toFixed(3),
        title: "squared Euclidean distance, 0 to 4",
      }),
    );
  }
  link.append(picture, facts, element("span", { class: "class", text: each.class ?? each.source_id }));
  if (queryClass !== null && each.class === queryClass) {
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
    byId("error").textContent = `${file.name}: the file is larger than ${most} MB`;
    return;
  }
  const upload = Date.now() + Math.random();
  uploads.set(upload, file);
  go({ upload });
}

byId("file").addEventListener("change", ({ target }) => {
  search(target.files[0]);
  target.value = ""; // without this, choosing the same file again would not count as a change
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

// With a modifier key, a click opens a link in another tab or window, or saves it.
const hasModifier = (event) => event.ctrlKey || event.metaKey || event.shiftKey || event.altKey;

byId("search").addEventListener("submit", (event) => event.preventDefault());
byId("search").addEventListener("change", ({ target }) => {
  if (!Object.values(fields).includes(target) || !byId("search").reportValidity()) return;
  const { sourceId, upload } = stateOfAddress();
  go({ sourceId, upload });
});

byId("results").addEventListener("click", async (event) => {
  const link = event.target.closest("a");
  if (!link || hasModifier(event)) return;
  event.preventDefault();
  // The results are replaced, and the link that had the focus is gone.
  if (await go({ sourceId: link.dataset.sourceId })) byId("results-title").focus();
});

byId("home").addEventListener("click", (event) => {
  if (hasModifier(event)) return;
  event.preventDefault();
  go({ filters: { class: "", split: "", neighbours: String(DEFAULT_NEIGHBOURS) } });
});

window.addEventListener("popstate", show);

async function start() {
  let classes;
  try {
    [info, { classes }] = await Promise.all([ask("/api/info"), ask("/api/classes")]);
  } catch (error) {
    byId("error").textContent = error.message;
    return;
  }
  byId("about").textContent =
    `${info.images.toLocaleString()} images, ${classes.length.toLocaleString()} classes`;
  byId("classes").replaceChildren(...classes.map((name) => element("option", { value: name })));
  for (const split of info.splits) fields.split.add(new Option(split, split));
  fields.class.disabled = !classes.length;
  fields.split.disabled = !info.splits.length;
  fields.neighbours.max = info.max_neighbours;
  await show();
}

const started = start();
