// Answers questions in a worker, so that the page stays responsive.

import * as ort from '../vendor/ort.wasm.min.mjs';
import { Tokenizer } from '../vendor/tokenizers.min.mjs';
import { Answerer } from './answerer.js';
import { open } from './bundle.js';

ort.env.wasm.wasmPaths = new URL('../vendor/', import.meta.url).href;
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;

let answerer;
const works = {
  async open({ digest, key, keep }) {
    const { manifest, files } = await open(digest, key, keep, (done, size) => postMessage({ kind: 'loading', done, size }));
    answerer = await Answerer.open(ort, Tokenizer, manifest, files);
    postMessage({ kind: 'opened' });
  },

  async ask({ samples, question, options }) {
    const states = await answerer.read(samples);
    const answers = question === undefined ? await answerer.askAll(states) : [await answerer.ask(states, question, options)];
    postMessage({ kind: 'answers', answers, windows: states.length, model: answerer.manifest.name });
  },
};
onmessage = ({ data }) => works[data.kind](data).catch((error) => postMessage({ kind: 'failed', message: error.message }));
