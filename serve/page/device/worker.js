// The engine in a worker, so that the page stays responsive. One request at a time.

import * as ort from '../vendor/ort.wasm.min.mjs';
import { Tokenizer } from '../vendor/tokenizers.min.mjs';
import { open } from './bundle.js';
import { Engine } from './engine.js';

ort.env.wasm.wasmPaths = new URL('../vendor/', import.meta.url).href;
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;

const QUIET = { prompt: 'warming up', temperature: 0, seed: 0, top_k: 0, top_p: 1 };
let engine, stopped, playing = false;
const works = {
  async open({ digest, key, keep }) {
    engine = undefined;
    const { manifest, files } = await open(digest, key, keep, (done, size) => postMessage({ kind: 'loading', done, size }));
    engine = await Engine.open(ort, Tokenizer, manifest, files);
    for await (const _ of engine.play({ ...QUIET, guidance: manifest.sampling.guidance, seconds: 0.3 })); // warm-up
    postMessage({ kind: 'opened', threads: ort.env.wasm.numThreads });
  },

  async play({ request }) {
    stopped = false;
    playing = true;
    const { shape, frameRate } = engine, defaults = engine.manifest.sampling;
    const whole = { top_k: defaults.top_k, top_p: defaults.top_p, guidance: defaults.guidance, ...request };
    const total = Math.round(request.seconds * frameRate) * shape.hop, unknown = engine.unknownWords(request.prompt);
    postMessage({ kind: 'heading', rate: shape.sampling_rate, total, unknown });
    let paused = performance.now(), began = paused, second = 1;
    for await (const { samples, ready } of engine.play(whole)) {
      if (samples) postMessage({ kind: 'samples', samples }, [samples.buffer]);
      const now = performance.now();
      if (ready >= second * frameRate) {
        postMessage({ kind: 'pace', second, took: (now - began) / 1000 });
        began = now;
        second += 1;
      }
      if (now - paused > 50) { // let a `stop` in
        await new Promise((resolve) => setTimeout(resolve));
        paused = now;
      }
      if (stopped) break;
    }
    playing = false;
    postMessage({ kind: stopped ? 'stopped' : 'ended' });
  },

  async stop() {
    stopped = true;
    if (!playing) postMessage({ kind: 'stopped' });
  },
};
onmessage = ({ data }) => works[data.kind](data).catch((error) => {
  playing = false;
  postMessage({ kind: 'failed', message: error.message });
});
