// What lies between two looks: numbers that grow become rates.

/** Looks that are kept of each number. */
const KEPT = 90;

const rate = (before, now, seconds) => Math.max(0, (now - before) / seconds);

function totals(usage) {
  const sum = { cpu: usage.cpuSeconds, memory: usage.memoryBytes, exits: 0, disk: 0, network: 0 };
  for (const cpu of usage.vcpus || []) sum.exits += cpu.exits.all || 0;
  for (const device of Object.values(usage.devices || {})) {
    sum.disk += (device.read_bytes || 0) + (device.write_bytes || 0);
    sum.network += (device.rx_bytes || 0) + (device.tx_bytes || 0);
  }
  if (usage.block) sum.disk += usage.block.readBytes + usage.block.writtenBytes;
  return sum;
}

function host(before, now, seconds) {
  const busy = (one) =>
    Object.entries(one.cpuSeconds)
      .filter(([mode]) => !["idle", "iowait", "steal"].includes(mode))
      .reduce((sum, [, n]) => sum + n, 0);
  return {
    cpu: Math.min(100, (100 * rate(busy(before), busy(now), seconds)) / Math.max(1, now.cpus)),
    memory: now.memoryBytes - now.memoryAvailableBytes,
    disk: now.diskBytes - now.diskFreeBytes,
    agent: 100 * rate(before.agentCpuSeconds, now.agentCpuSeconds, seconds),
  };
}

/** Samples in, rates and their past out. */
export class Rates {
  #last = null;
  #past = new Map();

  #note(id, numbers) {
    const past = this.#past.get(id) || {};
    for (const [name, n] of Object.entries(numbers)) {
      past[name] = [...(past[name] || []), n].slice(-KEPT);
    }
    this.#past.set(id, past);
  }

  past(id) {
    return this.#past.get(id) || {};
  }

  take(sample) {
    const last = this.#last;
    if (last && sample.at <= last.at) return;
    const seconds = last ? sample.at - last.at : 1;
    const before = new Map((last ? last.workloads : []).map((one) => [one.uid, one]));
    const seen = new Set(["host"]);
    if (sample.host && last?.host) this.#note("host", host(last.host, sample.host, seconds));
    for (const one of sample.workloads) {
      seen.add(one.uid);
      const old = before.get(one.uid)?.usage;
      // A first look tells no rates.
      if (!one.usage || !old) continue;
      const [then, now] = [totals(old), totals(one.usage)];
      this.#note(one.uid, {
        cpu: 100 * rate(then.cpu, now.cpu, seconds),
        memory: now.memory,
        exits: rate(then.exits, now.exits, seconds),
        disk: rate(then.disk, now.disk, seconds),
        network: rate(then.network, now.network, seconds),
      });
    }
    for (const id of this.#past.keys()) if (!seen.has(id)) this.#past.delete(id);
    this.#last = sample;
  }
}

/** Bytes with a unit. */
export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (n >= 1000 && unit + 1 < units.length) {
    n /= 1024;
    unit += 1;
  }
  return `${n >= 100 || unit === 0 ? Math.round(n) : n.toFixed(1)} ${units[unit]}`;
}

export const last = (numbers) => (numbers && numbers.length ? numbers[numbers.length - 1] : 0);
export const count = (n) => (n >= 10000 ? `${Math.round(n / 1000)}k` : `${Math.round(n)}`);
