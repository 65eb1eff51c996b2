// Generation on this device: whether it is possible, and the same header and samples as from the server.

import { Unable, endWorker, messagesOf } from './messages.js';

// The smallest module with a SIMD instruction (i8x16.splat, i8x16.popcnt).
const SIMD = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11]);
const TRIAL = 3; // seconds of audio that decide whether the device is fast enough

// The reason why this device cannot run a bundle; undefined if it can.
export async function whyUnsupported(model) {
  if (!globalThis.WebAssembly?.validate(SIMD)) return 'this browser has no WebAssembly SIMD';
  if (!globalThis.caches || !globalThis.crypto?.subtle) return 'storing and verifying a bundle requires HTTPS';
  if (!(await fetch('vendor/ort.wasm.min.mjs').catch(() => null))?.ok) return 'the server lacks onnxruntime-web, which `make page` installs';
  const needed = 3 * Math.max(model.minimum_memory, model.bytes), has = (navigator.deviceMemory ?? 8) * 2 ** 30;
  if (has < needed) return `it needs ${(needed / 2 ** 30).toFixed(1)} GiB of memory`;
  const { quota = Infinity, usage = 0 } = (await navigator.storage?.estimate?.()) ?? {};
  if (quota - usage < 1.2 * model.bytes) return 'the browser’s storage is full';
  return undefined;
}

export class Device {
  constructor() { this.worker = undefined; }

  // Load a bundle, from the browser's storage if it is there, which then holds the bundles `keep` alone. `onProgress` receives the
  // bytes that are done, and their total.
  async open(model, key, keep, onProgress) {
    this.close();
    this.worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module' });
    this.worker.postMessage({ kind: 'open', digest: model.digest, key, keep });
    for await (const message of messagesOf(this.worker, 'opened')) if (message.kind === 'loading') onProgress(message.done, message.size);
    this.digest = model.digest;
    this.version = model.version;
  }

  get ready() { return Boolean(this.worker && this.digest); }

  // Yields {rate, total, seed, digest, version, unknown}, then Float32Arrays. Throws `Unable` if the device generates more slowly
  // than real time and a server (`fallback`) is available. One slow second may be a stall, two are too slow.
  async *generate(request, signal, fallback) {
    const seed = request.seed ?? Math.floor(Math.random() * 2 ** 53);
    this.worker.postMessage({ kind: 'play', request: { ...request, seed } });
    const stop = () => this.worker?.postMessage({ kind: 'stop' });
    signal.addEventListener('abort', stop);
    let slow = 0; // seconds of audio that took longer than one second
    let ended = false;
    try {
      for await (const message of messagesOf(this.worker, 'ended', 'stopped')) {
        if (message.kind === 'heading') {
          const { rate, total, unknown } = message;
          yield { rate, total, unknown, seed, digest: this.digest, version: this.version };
        }
        if (message.kind === 'samples') yield message.samples;
        if (message.kind === 'pace' && fallback && message.second <= TRIAL && message.took > 1 && ++slow > 1) {
          throw new Unable(`it is too slow (one second of audio took ${message.took.toFixed(1)} s)`);
        }
      }
      ended = true;
      signal.throwIfAborted();
    } finally {
      signal.removeEventListener('abort', stop);
      if (!ended) await this.#stop();
    }
  }

  close() {
    endWorker(this.worker);
    this.worker = this.digest = undefined;
  }

  // Stop the worker, and wait for it.
  async #stop() {
    if (!this.worker) return;
    this.worker.postMessage({ kind: 'stop' });
    try {
      for await (const _ of messagesOf(this.worker, 'ended', 'stopped'));
    } catch {
      this.close();
    }
  }
}
