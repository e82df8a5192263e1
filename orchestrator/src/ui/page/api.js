// How the host is asked: with the token that was typed in, if there is one.

const KEPT = "skerry.token";

export class Refused extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEPT) || "",
  set: (text) => (text ? sessionStorage.setItem(KEPT, text) : sessionStorage.removeItem(KEPT)),
};

async function ask(path, signal) {
  const headers = token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
  const answer = await fetch(path, { headers, signal, cache: "no-store" });
  if (!answer.ok) {
    const status = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, status.message || `the host answered ${answer.status}`);
  }
  return answer;
}

export const get = async (path, signal) => (await ask(path, signal)).json();

const PLURALS = { microvm: "microvms", container: "containers", baremetal: "baremetals" };

/** The path of a workload. */
export const pathOf = (one) =>
  `/apis/skerry.io/v1/namespaces/${encodeURIComponent(one.namespace)}/${PLURALS[one.kind]}/${encodeURIComponent(one.name)}`;

/** What a workload says, as it says it, until the signal. */
export async function follow(one, heard, signal) {
  const answer = await ask(`${pathOf(one)}/log?follow=true`, signal);
  const pieces = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await pieces.read();
    if (done) return;
    heard(value);
  }
}

/** A workload's console: a WebSocket whose messages are its bytes. */
export function console_(one) {
  const at = new URL(`${pathOf(one)}/console`, location.href);
  at.protocol = at.protocol === "https:" ? "wss:" : "ws:";
  const protocols = ["skerry.console.v1"];
  if (token.get()) protocols.push(`skerry.token.${token.get()}`);
  const socket = new WebSocket(at, protocols);
  socket.binaryType = "arraybuffer";
  return socket;
}

/** What happened to a workload, newest first. */
export async function events(one, signal) {
  const fields = encodeURIComponent(`involvedObject.uid=${one.uid}`);
  const list = await get(`/api/v1/namespaces/${encodeURIComponent(one.namespace)}/events?fieldSelector=${fields}`, signal);
  return list.items.sort((a, b) => (b.lastTimestamp || "").localeCompare(a.lastTimestamp || ""));
}
