const main = document.getElementById("main");
const FINAL = ["succeeded", "failed", "canceled"];
const POLL_MS = 700;
let timer = 0;

class ApiError extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `The server answered ${status}.`);
    this.status = status;
  }
}

function takeTokenFromAddress() {
  const match = location.hash.match(/^#token=(.+)$/);
  if (!match) return;
  localStorage.setItem("token", decodeURIComponent(match[1]));
  history.replaceState(null, "", location.pathname);
}

async function api(path, options = {}) {
  const headers = { Authorization: `Bearer ${localStorage.getItem("token") || ""}` };
  const answer = await fetch(path, { ...options, headers });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ApiError(answer.status, body);
  return body;
}

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const money = (micros) => `$${(micros / 1e6).toFixed(micros && micros < 10000 ? 6 : 2)}`;
const when = (text) => el("time", { datetime: text }, new Date(text).toLocaleString());
const status = (word) => el("span", { class: `status ${word}` }, word);
const section = (title, node) => el("section", {}, el("h2", {}, title), node);

function price(cost) {
  if (!cost || !cost.status) return "";
  if (cost.status === "held") return `up to ${money(cost.held_amount_micros)}`;
  return cost.status === "released" ? "free" : money(cost.captured_amount_micros || 0);
}

function rows(items, render, empty) {
  if (!items.length) return el("p", { class: "card faint" }, empty);
  return el("ul", { class: "rows" }, ...items.map((item) => el("li", {}, render(item))));
}

function modelRow(model) {
  const version = model.latest_version;
  return el("div", { class: "row" },
    el("strong", {}, `${model.owner}/${model.name}`),
    el("span", { class: "grow faint" }, model.description || ""),
    el("span", { class: "faint" }, version ? version.kind || "" : "no version"),
    version ? el("span", { class: "mono", title: version.id }, version.id.slice(0, 12)) : null,
    el("span", { class: "num" }, `${model.run_count} run${model.run_count === 1 ? "" : "s"}`));
}

function predictionRow(prediction) {
  return el("a", { class: "row", href: `/p/${encodeURIComponent(prediction.id)}` },
    status(prediction.status),
    el("span", { class: "grow" }, prediction.model),
    el("span", { class: "num" }, price(prediction.cost)),
    when(prediction.created_at));
}

async function showHome() {
  const [models, predictions] = await Promise.all([api("/v1/models"), api("/v1/predictions")]);
  main.replaceChildren(
    section("Models", rows(models.results, modelRow, "No models yet. Push one: reprise push owner/name folder")),
    section("Recent predictions", rows(predictions.results.slice(0, 25), predictionRow, "No predictions yet.")));
  const isBusy = predictions.results.some((item) => !FINAL.includes(item.status));
  again(showHome, isBusy ? 2000 : 10000);
}

function isFile(value) {
  return typeof value === "string" && (value.startsWith("data:") || /^https?:\/\/[^\s]+\/v1\/files\/[^\s]+$/.test(value));
}

async function fileType(url) {
  if (url.startsWith("data:")) return url.slice(5, url.indexOf(";"));
  const stop = new AbortController();
  try {
    const answer = await fetch(url, { signal: stop.signal });
    return answer.headers.get("content-type") || "";
  } catch {
    return "";
  } finally {
    stop.abort();
  }
}

async function fileView(url) {
  const kind = (await fileType(url)).split("/")[0];
  if (kind === "image") return el("img", { src: url, alt: "Output image" });
  if (kind === "audio" || kind === "video") return el(kind, { src: url, controls: "" });
  return el("a", { href: url, download: "" }, "Download file");
}

async function outputView(output) {
  const items = Array.isArray(output) ? output : [output];
  if (items.length && items.every(isFile)) return el("div", { class: "output" }, ...(await Promise.all(items.map(fileView))));
  if (items.every((item) => typeof item === "string")) return el("div", { class: "text" }, items.join(""));
  return el("pre", {}, JSON.stringify(output, null, 2));
}

function costView(cost) {
  const line = (name, value) => [el("dt", {}, name), el("dd", {}, value)];
  return el("dl", { class: "small" },
    ...line("Price", `${money(cost.price_micros_per_second)} per second on ${cost.hardware}`),
    ...line("Held", money(cost.held_amount_micros)),
    ...(cost.status === "held" ? [] : line("Charged", `${price(cost)} for ${cost.charged_ms} ms`)),
    ...(cost.ledger_entry_id ? line("Ledger entry", cost.ledger_entry_id) : []));
}

function headCard(prediction) {
  const cancel = el("button", { type: "button" }, "Cancel");
  cancel.addEventListener("click", async () => {
    cancel.disabled = true;
    await guarded(async () => {
      await api(`/v1/predictions/${encodeURIComponent(prediction.id)}/cancel`, { method: "POST" });
      await showPrediction(prediction.id);
    });
  });
  const seconds = prediction.metrics && prediction.metrics.predict_time;
  return el("div", { class: "card bar" },
    status(prediction.status),
    el("span", {}, price(prediction.cost)),
    seconds ? el("span", { class: "num" }, `${seconds.toFixed(3)} s`) : null,
    when(prediction.created_at),
    FINAL.includes(prediction.status) ? null : cancel);
}

function queueCard(queue) {
  const place = queue.position > 0 ? `Position ${queue.position} in line. ` : "";
  return el("div", { class: "card queue" }, place, queue.detail || (queue.reason || "").replaceAll("_", " "));
}

let shown = "";
async function showPrediction(id) {
  const prediction = await api(`/v1/predictions/${encodeURIComponent(id)}`);
  const state = JSON.stringify(prediction);
  if (state !== shown) {
    const parts = [el("h1", {}, prediction.model, " ", el("span", { class: "mono faint" }, prediction.id)), headCard(prediction)];
    if (prediction.queue) parts.push(queueCard(prediction.queue));
    if (prediction.error) parts.push(el("p", { class: "card bad" }, prediction.error));
    if (prediction.output !== null) {
      const view = await outputView(prediction.output);
      parts.push(section("Output", el("div", { class: "card" }, view)));
    }
    if (prediction.logs) parts.push(section("Logs", el("div", { class: "card" }, el("pre", { tabindex: "0" }, prediction.logs))));
    const input = JSON.stringify(prediction.input, (_, value) => (typeof value === "string" && value.length > 2000 ? value.slice(0, 2000) + "…" : value), 2);
    parts.push(section("Input", el("div", { class: "card" }, el("pre", { tabindex: "0" }, input))));
    if (prediction.cost) parts.push(section("Cost", el("div", { class: "card" }, costView(prediction.cost))));
    const hadFocus = document.activeElement && document.activeElement.tagName === "BUTTON" && main.contains(document.activeElement);
    main.replaceChildren(...parts);
    if (hadFocus) (main.querySelector("button") || main).focus();
    shown = state;
  }
  const isSettled = FINAL.includes(prediction.status) && !(prediction.cost && prediction.cost.status === "held");
  if (!isSettled) again(() => showPrediction(id), POLL_MS);
}

function showSignIn(message = "") {
  const form = document.getElementById("sign-in").content.cloneNode(true).querySelector("form");
  form.querySelector(".bad").textContent = message;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    localStorage.setItem("token", form.querySelector("input").value.trim());
    start();
  });
  main.replaceChildren(form);
  form.querySelector("input").focus();
}

function again(work, delayMs) {
  clearTimeout(timer);
  timer = setTimeout(() => (document.hidden ? again(work, delayMs) : guarded(work)), delayMs);
}

async function guarded(work) {
  try {
    await work();
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return signOut("This token is not valid.");
    if (error instanceof ApiError) return main.replaceChildren(el("p", { class: "card bad" }, error.message));
    again(work, 2000);
  }
}

function signOut(message) {
  localStorage.removeItem("token");
  document.getElementById("leave").hidden = true;
  document.getElementById("credit").textContent = "";
  clearTimeout(timer);
  showSignIn(message);
}

async function showCredit() {
  const credit = await api("/v1/credit");
  document.getElementById("credit").textContent = `${money(credit.available_micros)} credit`;
}

function start() {
  takeTokenFromAddress();
  if (!localStorage.getItem("token")) return showSignIn();
  document.getElementById("leave").hidden = false;
  showCredit().catch(() => {});
  const match = location.pathname.match(/^\/p\/([^/]+)$/);
  guarded(match ? () => showPrediction(decodeURIComponent(match[1])) : showHome);
}

document.getElementById("leave").addEventListener("click", () => signOut(""));
addEventListener("hashchange", start);
start();
