// One workload: its charts, what it says, its console, what happened to it.

import { console_, events, follow } from "./api.js";
import { chart } from "./chart.js";
import { bytes, count, last } from "./rates.js";

/** Characters of a log or console that are kept. */
const KEPT = 200000;

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Adds text to a screen, which stays at its end if it was there. */
function say(screen, text) {
  const atEnd = screen.scrollHeight - screen.scrollTop - screen.clientHeight < 40;
  // Colours and movements of the cursor are left out.
  const plain = text.replace(/\u001b\[[0-9;?]*[ -/]*[@-~]|\u001b\][^\u0007]*\u0007|\u001b[@-_]/g, "").replace(/\r/g, "");
  screen.textContent = (screen.textContent + plain).slice(-KEPT);
  if (atEnd) screen.scrollTop = screen.scrollHeight;
}

const CHARTS = [
  ["cpu", "CPU", (n) => `${n.toFixed(1)} %`],
  ["memory", "Memory", bytes],
  ["exits", "Exits", (n) => `${count(n)}/s`],
  ["disk", "Disk", (n) => `${bytes(n)}/s`],
  ["network", "Network", (n) => `${bytes(n)}/s`],
];

export class Workload {
  #end = new AbortController();
  #one;
  #charts = new Map();
  #panel;
  #state;

  constructor(place, one) {
    this.#one = one;
    this.uid = one.uid;
    const title = element("h2", { tabindex: "-1" }, `${one.kind} ${one.name}`);
    this.#state = element("p", {});
    const cards = element("div", { class: "cards" });
    for (const [key, name] of CHARTS) {
      if (one.kind !== "microvm" && ["exits", "network"].includes(key)) continue;
      const drawn = chart(name);
      const shown = element("p", {});
      cards.append(element("div", { class: "card" }, element("h3", {}, name), shown, drawn));
      this.#charts.set(key, [drawn, shown]);
    }
    const tabs = element("div", { role: "tablist", "aria-label": "What to show of it" });
    this.#panel = element("div", { role: "tabpanel", id: "panel" });
    const all = [["log", "Log", () => this.#log()], ["events", "Events", () => this.#events()]];
    if (one.kind === "microvm") all.splice(1, 0, ["console", "Console", () => this.#console()]);
    for (const [id, name, open] of all) {
      const tab = element("button", { role: "tab", type: "button", id: `tab-${id}`, "aria-controls": "panel" }, name);
      tab.addEventListener("click", () => this.#choose(tab, open));
      tabs.append(tab);
    }
    tabs.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const found = [...tabs.children];
      const next = found[(found.indexOf(document.activeElement) + step + found.length) % found.length];
      next.focus();
    });
    const back = element("p", {}, element("a", { href: "#/" }, "All workloads"));
    place.replaceChildren(back, title, this.#state, cards, tabs, this.#panel);
    this.#choose(tabs.firstChild, all[0][2]);
    title.focus();
  }

  #choose(tab, open) {
    this.#end.abort();
    this.#end = new AbortController();
    for (const other of tab.parentElement.children) {
      other.setAttribute("aria-selected", String(other === tab));
    }
    this.#panel.setAttribute("aria-labelledby", tab.id);
    open();
  }

  #screen(label, role) {
    const screen = element("pre", { tabindex: "0", role, "aria-label": label });
    this.#panel.replaceChildren(screen);
    return screen;
  }

  #log() {
    const screen = this.#screen(`What ${this.#one.name} says`, "log");
    const { signal } = this.#end;
    follow(this.#one, (text) => say(screen, text), signal).catch((error) => {
      if (!signal.aborted) say(screen, `\n[${error.message}]\n`);
    });
  }

  #console() {
    const screen = this.#screen(`The console of ${this.#one.name}`, "log");
    const input = element("input", { id: "typed", type: "text", autocomplete: "off", autocapitalize: "off", spellcheck: "false" });
    const break_ = element("button", { type: "button" }, "Ctrl-C");
    const form = element("form", { class: "typed" }, element("label", {}, "Type ", input), element("button", { type: "submit" }, "Send"), break_);
    this.#panel.append(form);
    const socket = console_(this.#one);
    const { signal } = this.#end;
    const words = new TextDecoder();
    const send = (text) => socket.readyState === WebSocket.OPEN && socket.send(new TextEncoder().encode(text));
    socket.addEventListener("message", (event) => say(screen, words.decode(event.data, { stream: true })));
    socket.addEventListener("close", () => signal.aborted || say(screen, "\n[the console is closed]\n"));
    signal.addEventListener("abort", () => socket.close());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send(`${input.value}\r`);
      input.value = "";
    });
    break_.addEventListener("click", () => send("\u0003"));
  }

  async #events() {
    const { signal } = this.#end;
    const screen = this.#screen(`What happened to ${this.#one.name}`, "region");
    try {
      const all = await events(this.#one, signal);
      if (signal.aborted) return;
      const lines = all.map((event) => `${event.lastTimestamp}  ${event.type}  ${event.reason}: ${event.message}`);
      screen.textContent = lines.join("\n") || "Nothing in the last hour.";
    } catch (error) {
      if (!signal.aborted) screen.textContent = error.message;
    }
  }

  show(one, past) {
    const since = one.startedAt ? `, since ${new Date(one.startedAt * 1000).toLocaleString()}` : "";
    const at = one.addresses.length ? `, ${one.addresses.join(" ")}` : "";
    this.#state.textContent = `${one.phase}${one.ready ? ", ready" : ""} in ${one.namespace} on ${one.host || "no host"}${at}${since}, ${one.restarts} restarts`;
    for (const [key, , shown] of CHARTS) {
      const [drawn, text] = this.#charts.get(key) || [];
      if (!drawn) continue;
      text.textContent = shown(last(past[key]));
      drawn.show(past[key] || [], text.textContent);
    }
  }

  close() {
    this.#end.abort();
  }
}
