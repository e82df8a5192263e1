// The page: what there is, looked at every two seconds, and what is chosen of it.

import { Refused, get, token } from "./api.js";
import { chart } from "./chart.js";
import { Rates, bytes, count, last } from "./rates.js";
import { Workload } from "./workload.js";

const LOOK = 2000;
const at = (id) => document.getElementById(id);
const rates = new Rates();
const lines = new Map();
let sample = { workloads: [] };
let open = null;
let cards = null;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function tone(one) {
  if (one.phase === "Running" && one.ready) return "good";
  return ["Failing", "Failed"].includes(one.phase) ? "bad" : "warn";
}

const addressOf = (one) => `#/${one.kind}/${encodeURIComponent(one.namespace)}/${encodeURIComponent(one.name)}`;

function hostCards() {
  const made = {};
  const place = at("hosts");
  place.replaceChildren();
  for (const [key, name] of [["cpu", "CPU"], ["memory", "Memory"], ["disk", "Disk"]]) {
    const card = element("div", "card");
    const [text, meter, drawn] = [element("p"), element("meter"), chart(name)];
    meter.setAttribute("aria-label", name);
    meter.high = 0.9;
    card.append(element("h3", "", name), text, meter, drawn);
    place.append(card);
    made[key] = { text, meter, drawn };
  }
  return made;
}

function showHost(host) {
  at("overview").firstElementChild.hidden = !host;
  if (!host) return;
  cards = cards || hostCards();
  at("hosts-title").textContent = `Host ${host.name}`;
  const past = rates.past("host");
  const show = (key, used, whole, text) => {
    cards[key].text.textContent = text;
    cards[key].meter.value = Math.min(1, Math.max(0, used / whole || 0));
    cards[key].drawn.show(past[key] || [], text, whole);
  };
  const load = host.load[0].toFixed(2);
  const memory = host.memoryBytes - host.memoryAvailableBytes;
  const disk = host.diskBytes - host.diskFreeBytes;
  show("cpu", last(past.cpu), 100, `${last(past.cpu).toFixed(0)} % of ${host.cpus} CPUs, load ${load}`);
  show("memory", memory, host.memoryBytes, `${bytes(memory)} of ${bytes(host.memoryBytes)}`);
  show("disk", disk, host.diskBytes, `${bytes(disk)} of ${bytes(host.diskBytes)}`);
}

function line(one) {
  const row = element("tr");
  const cell = (name, className) => {
    const made = element("td", className);
    if (name) made.dataset.name = name;
    row.append(made);
    return made;
  };
  const link = element("a", "", one.name);
  link.href = addressOf(one);
  const name = cell("", "name");
  name.append(link, element("span", "", ` ${one.kind} in ${one.namespace}`));
  const cells = {
    phase: cell("").appendChild(element("span", "phase")),
    cpu: cell("CPU"), memory: cell("Memory"), exits: cell("Exits"), disk: cell("Disk"), network: cell("Network"),
  };
  const drawn = chart(`CPU of ${one.name}`);
  cell("", "spark").append(drawn);
  return { row, cells, drawn };
}

function set(node, text) {
  // What stays as it is costs nothing.
  if (node.textContent !== text) node.textContent = text;
}

function showLine({ cells, drawn }, one) {
  const past = rates.past(one.uid);
  set(cells.phase, one.phase === "Running" && !one.ready ? "Running, not ready" : one.phase);
  cells.phase.className = `phase ${tone(one)}`;
  set(cells.cpu, one.usage ? `${last(past.cpu).toFixed(1)} %` : "–");
  set(cells.memory, one.usage ? bytes(one.usage.memoryBytes) : "–");
  set(cells.exits, one.usage?.vcpus?.length ? `${count(last(past.exits))}/s` : "–");
  set(cells.disk, one.usage ? `${bytes(last(past.disk))}/s` : "–");
  set(cells.network, one.usage?.devices ? `${bytes(last(past.network))}/s` : "–");
  drawn.show(past.cpu || [], cells.cpu.textContent);
}

function showLines() {
  const [namespace, wanted] = [at("namespace").value, at("filter").value.toLowerCase()];
  const shown = sample.workloads.filter(
    (one) =>
      (!namespace || one.namespace === namespace) &&
      `${one.namespace}/${one.kind}/${one.name} ${one.phase}`.toLowerCase().includes(wanted),
  );
  const body = at("workloads").tBodies[0];
  const rows = shown.map((one) => {
    if (!lines.has(one.uid)) lines.set(one.uid, line(one));
    showLine(lines.get(one.uid), one);
    return lines.get(one.uid).row;
  });
  const there = new Set(sample.workloads.map((one) => one.uid));
  for (const uid of lines.keys()) if (!there.has(uid)) lines.delete(uid);
  // Rows are moved only if they have to be: whoever is on one stays there.
  if (rows.length !== body.rows.length || rows.some((row, i) => row !== body.rows[i])) body.replaceChildren(...rows);
  at("none").hidden = rows.length > 0;
  set(at("workloads-title"), `Workloads (${rows.length})`);
}

function showNamespaces() {
  const chosen = at("namespace");
  const names = [...new Set(sample.workloads.map((one) => one.namespace))].sort();
  const there = [...chosen.options].slice(1).map((option) => option.value);
  if (names.join() === there.join()) return;
  const before = chosen.value;
  chosen.replaceChildren(new Option("all", ""), ...names.map((name) => new Option(name, name)));
  chosen.value = names.includes(before) ? before : "";
}

function wanted() {
  const [, kind, namespace, name] = location.hash.split("/").map(decodeURIComponent);
  return sample.workloads.find((one) => one.kind === kind && one.namespace === namespace && one.name === name);
}

function show() {
  const one = wanted();
  at("overview").hidden = Boolean(one);
  at("workload").hidden = !one;
  if (open && open.uid !== one?.uid) {
    open.close();
    open = null;
    at("workload").replaceChildren();
  }
  if (one) {
    open = open || new Workload(at("workload"), one);
    open.show(one, rates.past(one.uid));
    document.title = `${one.name} – Skerry`;
    return;
  }
  document.title = "Skerry";
  showHost(sample.host);
  showNamespaces();
  showLines();
}

function askToken() {
  if (!at("token-dialog").open) at("token-dialog").showModal();
}

async function look() {
  try {
    sample = await get("/usage");
    rates.take(sample);
    set(at("trouble"), "");
    show();
  } catch (error) {
    set(at("trouble"), error instanceof Refused ? error.message : "The host does not answer. It is asked again.");
    if (error.code === 401) askToken();
  }
}

async function again() {
  // A page that nobody looks at costs nothing.
  if (!document.hidden && !at("token-dialog").open) await look();
  setTimeout(again, LOOK);
}

at("token-button").addEventListener("click", askToken);
at("token-cancel").addEventListener("click", () => at("token-dialog").close());
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(at("token").value.trim());
  at("token").value = "";
  at("token-dialog").close();
  look();
});
at("choose").addEventListener("submit", (event) => event.preventDefault());
at("namespace").addEventListener("change", showLines);
at("filter").addEventListener("input", showLines);
addEventListener("hashchange", show);
document.addEventListener("visibilitychange", () => document.hidden || look());
again();
