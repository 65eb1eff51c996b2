// The engine in JavaScript: one bundle, one request at a time. It follows tinymusician/runtime step by step: the same
// delay pattern, guidance, windows and codec context, so greedy codes are equal. Its random number generator differs.

const LENGTH_STEP = 128, TEXT_STEP = 16; // how buffers grow (runtime/decoder.py)
const OVERLAP = 0.4; // share of a window that the next one continues from (runtime/windowed.py)
const FIRST_CHUNK = 0.5, CHUNK = 1.0; // seconds (runtime/generator.py)

const rounded = (count, step) => Math.ceil(count / step) * step;
const inputs = (session) => Object.fromEntries(session.inputMetadata.map((value) => [value.name, value]));

export class Engine {
  // `ort` is onnxruntime-web, `Tokenizer` that of @huggingface/tokenizers, `files` the bundle's bytes by role.
  static async open(ort, Tokenizer, manifest, files) {
    const engine = new Engine();
    engine.ort = ort;
    engine.manifest = manifest;
    engine.shape = manifest.architecture;
    const words = JSON.parse(new TextDecoder().decode(files.tokenizer));
    engine.tokenizer = new Tokenizer(words, { unk_token: words.model.unk_token });
    engine.unknownId = words.model.unk_id ?? words.model.vocab[words.model.unk_token]; // Unigram has unk_id
    engine.sessions = {};
    for (const role of ['decoder', 'text_encoder', 'cross', 'codec_decoder']) {
      engine.sessions[role] = await ort.InferenceSession.create(files[role], { executionProviders: ['wasm'], logSeverityLevel: 3 });
      delete files[role];
    }
    engine.layers = engine.sessions.decoder.inputNames.filter((name) => name.startsWith('past_key.')).length;
    return engine;
  }

  get frameRate() { return this.shape.sampling_rate / this.shape.hop; }

  // The words of a prompt that the tokenizer maps to its unknown token, each once (runtime/text.py).
  unknownWords(prompt) {
    const words = prompt.match(/[\p{L}\p{N}]+|[^\s\p{P}\p{L}\p{N}]+/gu) ?? [];
    const unknown = words.filter((word) => this.tokenizer.encode(word).ids.includes(this.unknownId));
    const lower = unknown.map((word) => word.toLowerCase());
    return unknown.filter((_, index) => lower.indexOf(lower[index]) === index);
  }

  // Yields {ready, frames} after every step, and {samples} when they are final.
  async *play(request) {
    const frames = Math.round(request.seconds * this.frameRate), window = this.shape.window;
    const { one_pass, guidance_range } = this.manifest.sampling; // with a range, the model is guidance-conditioned
    if (guidance_range && !(guidance_range[0] <= request.guidance && request.guidance <= guidance_range[1])) {
      throw new Error(`Guidance ${request.guidance}: this model was distilled for ${guidance_range.join(' to ')}.`);
    }
    const text = await this.#text(request.prompt, guidance_range ? { guidance: this.#tensor('float32', Float32Array.of(request.guidance), [1]) } : {});
    const without = one_pass || request.guidance === 1 ? null : request.negative_prompt ? await this.#text(request.negative_prompt) : await this.#nothing();
    const texts = without ? [text, without] : [text];
    const codes = Array.from({ length: this.shape.codebooks }, () => new Int32Array(frames));
    const audio = new AudioStream(this);
    let done = 0, due = FIRST_CHUNK * this.frameRate;
    for (let number = 0; done < frames; number++) {
      const overlap = frames <= window ? done : Math.min(done, Math.trunc(OVERLAP * window));
      const length = Math.min(window, overlap + frames - done), first = done - overlap;
      const given = codes.map((book) => book.slice(first, done));
      for await (const { ready, column } of this.#window(texts, request, given, length, number)) {
        if (ready > overlap) column.forEach((code, book) => { codes[book][first + ready - 1] = code; });
        const reached = first + Math.max(ready, overlap);
        yield { ready: reached, frames };
        if (reached >= due && reached < frames) {
          due = reached + CHUNK * this.frameRate;
          yield { samples: await audio.feed(codes, reached, false) };
        }
      }
      done = first + length;
    }
    yield { samples: await audio.feed(codes, frames, true) };
  }

  // The greedy or sampled codes of one window; `given` are the codes of its first frames.
  async *#window(texts, request, given, frames, number) {
    const { codebooks, vocabulary } = this.shape, steps = frames + codebooks - 1, prefix = given[0].length;
    const decoder = new Decoder(this, texts, steps), random = numbers(request.seed, number);
    const delayed = Array.from({ length: codebooks }, () => new Int32Array(steps).fill(vocabulary));
    given.forEach((book, k) => book.forEach((code, t) => { delayed[k][k + t] = code; }));
    for (let step = 0; step < steps; step++) {
      const logits = await decoder.step(delayed.map((book) => (step ? book[step - 1] : vocabulary)));
      for (let k = 0; k < codebooks; k++) {
        const uniform = random(), frame = step - k;
        if (frame < prefix || frame >= frames) continue;
        const scores = guided(logits, texts.length, codebooks, vocabulary, k, request.guidance);
        delayed[k][step] = draw(scores, uniform, request);
      }
      const ready = step - codebooks + 2;
      if (ready > 0) yield { ready, column: delayed.map((book, k) => book[ready - 1 + k]) };
      else yield { ready: 0, column: [] };
    }
  }

  async #text(prompt, extraInputs = {}) {
    const ids = this.tokenizer.encode(prompt).ids;
    if (ids.length > this.shape.text_tokens) throw new Error(`The prompt has ${ids.length} tokens; at most ${this.shape.text_tokens} are allowed.`);
    const dims = [1, ids.length], mask = new Int32Array(ids.length).fill(1);
    const feeds = { ids: this.#tensor('int64', BigInt64Array.from(ids, BigInt), dims), mask: this.#tensor('int32', mask, dims) };
    const states = Object.values(await this.sessions.text_encoder.run(feeds))[0];
    return this.#attended(states, mask, extraInputs);
  }

  // The null condition of classifier-free guidance: zero states under a zero mask.
  async #nothing() {
    const width = inputs(this.sessions.cross).text_states.shape[2];
    return this.#attended(this.#tensor('float32', new Float32Array(width), [1, 1, width]), new Int32Array(1), {});
  }

  async #attended(states, mask, extraInputs) {
    const feeds = { text_states: states, text_mask: this.#tensor('int32', mask, [1, mask.length]), ...extraInputs };
    const outputs = await this.sessions.cross.run(feeds);
    return { mask, arrays: Object.fromEntries(Object.entries(outputs).map(([name, value]) => [name, value.data])), length: mask.length };
  }

  #tensor(type, data, dims) { return new this.ort.Tensor(type, data, dims); }
}

// One row per text, all at the same position.
class Decoder {
  constructor(engine, texts, steps) {
    this.engine = engine;
    this.rows = texts.length;
    this.position = 0;
    const { ort, sessions } = engine, metadata = inputs(sessions.decoder);
    const [, heads, , size] = metadata['past_key.0'].shape, type = metadata['past_key.0'].type;
    const width = rounded(Math.max(...texts.map((text) => text.length)), TEXT_STEP);
    const mask = new Int32Array(this.rows * width);
    texts.forEach((text, row) => mask.set(text.mask, row * width));
    this.feeds = { text_mask: new ort.Tensor('int32', mask, [this.rows, width]) };
    const cache = [this.rows, heads, rounded(steps, LENGTH_STEP), size], count = cache.reduce((a, b) => a * b);
    for (let layer = 0; layer < engine.layers; layer++) {
      for (const kind of ['key', 'value']) {
        const past = type === 'int8' ? new Int8Array(count) : new Float32Array(count);
        this.feeds[`past_${kind}.${layer}`] = new ort.Tensor(type, past, cache);
        const cross = new Float32Array(this.rows * heads * width * size);
        texts.forEach((text, row) => {
          for (let head = 0; head < heads; head++) {
            const from = head * text.length * size;
            cross.set(text.arrays[`cross_${kind}.${layer}`].subarray(from, from + text.length * size), (row * heads + head) * width * size);
          }
        });
        this.feeds[`cross_${kind}.${layer}`] = new ort.Tensor('float32', cross, [this.rows, heads, width, size]);
      }
    }
  }

  // Logits [rows · K · V] after every row has read `column` [K].
  async step(column) {
    const { ort, sessions, layers } = this.engine;
    const codes = BigInt64Array.from(Array.from({ length: this.rows }, () => column).flat(), BigInt);
    this.feeds.codes = new ort.Tensor('int64', codes, [this.rows, column.length]);
    this.feeds.positions = new ort.Tensor('int32', new Int32Array(this.rows).fill(this.position), [this.rows]);
    const outputs = await sessions.decoder.run(this.feeds);
    for (let layer = 0; layer < layers; layer++) {
      for (const kind of ['key', 'value']) this.feeds[`past_${kind}.${layer}`] = outputs[`kept_${kind}.${layer}`];
    }
    this.position += 1;
    return outputs.logits.data;
  }
}

// Decodes codes to final samples; the concatenated chunks equal the audio that is decoded at once (runtime/codec.py).
class AudioStream {
  constructor(engine) {
    this.engine = engine;
    const [, layers, width] = inputs(engine.sessions.codec_decoder).state.shape;
    this.state = new engine.ort.Tensor('float32', new Float32Array(layers * width), [1, layers, width]);
    this.tail = new engine.ort.Tensor('float32', new Float32Array(0), [1, width, 0]);
    this.remembered = this.tailStart = this.given = 0;
  }

  async feed(codes, available, last) {
    const { ort, shape, sessions } = this.engine, { context_before: before, context_after: after, hop } = shape;
    const through = last ? available : available - before, ready = last ? through : through - after;
    if (ready <= this.given) return new Float32Array(0);
    const start = Math.max(0, this.remembered - before), length = available - start;
    const values = BigInt64Array.from(codes.flatMap((book) => Array.from(book.subarray(start, available))), BigInt);
    const outputs = await sessions.codec_decoder.run({
      codes: new ort.Tensor('int64', values, [1, codes.length, length]),
      cut: new ort.Tensor('int64', BigInt64Array.from([this.remembered - start, available - through], BigInt), [2]),
      state: this.state, ['kept']: this.tail,
    });
    const samples = outputs.audio.data.slice((this.given - this.tailStart) * hop, (ready - this.tailStart) * hop);
    const keepFrom = Math.max(0, ready - after), [, width, columns] = outputs.latent.dims, skip = keepFrom - this.tailStart;
    const tail = new Float32Array(width * (columns - skip));
    for (let row = 0; row < width; row++) tail.set(outputs.latent.data.subarray(row * columns + skip, (row + 1) * columns), row * (columns - skip));
    this.tail = new ort.Tensor('float32', tail, [1, width, columns - skip]);
    this.state = outputs.state_after;
    this.remembered = through; this.tailStart = keepFrom; this.given = ready;
    return samples;
  }
}

// z_u + s · (z_c - z_u) in float32, as the engine computes it (runtime/sampling.py).
function guided(logits, rows, codebooks, vocabulary, book, scale) {
  const conditional = logits.subarray(book * vocabulary, (book + 1) * vocabulary);
  if (rows === 1) return conditional;
  const bare = logits.subarray((codebooks + book) * vocabulary, (codebooks + book + 1) * vocabulary), narrow = Math.fround(scale);
  return conditional.map((value, i) => bare[i] + Math.fround(narrow * Math.fround(value - bare[i])));
}

// One code by the inverse of its distribution at `uniform`: temperature, then top-k, then top-p.
function draw(logits, uniform, { temperature, top_k, top_p }) {
  if (!logits.every(Number.isFinite)) throw new Error('The decoder returned non-finite logits: this browser cannot run the bundle.');
  if (temperature === 0) return logits.reduce((best, value, i) => (value > logits[best] ? i : best), 0);
  let scores = Float64Array.from(logits, (value) => value / temperature);
  if (top_k > 0 && top_k < scores.length) {
    const least = scores.slice().sort()[scores.length - top_k];
    scores = scores.map((value) => (value < least ? -Infinity : value));
  }
  let shares = softmax(scores);
  if (top_p < 1) {
    const order = Array.from(shares.keys()).sort((a, b) => shares[a] - shares[b]);
    let sum = 0;
    for (const i of order.slice(0, -1)) if ((sum += shares[i]) <= 1 - top_p) scores[i] = -Infinity; else break;
    shares = softmax(scores);
  }
  const total = shares.reduce((a, b) => a + b);
  let sum = 0;
  for (let i = 0; i < shares.length; i++) if ((sum += shares[i]) > uniform * total) return i;
  return shares.length - 1;
}

function softmax(scores) {
  const most = Math.max(...scores), risen = scores.map((value) => Math.exp(value - most)), sum = risen.reduce((a, b) => a + b);
  return risen.map((value) => value / sum);
}

// Uniform numbers in [0, 1) of a seed and a window (sfc32, Chris Doty-Humphrey, seeded word by word and run warm).
function numbers(seed, window) {
  let a = seed >>> 0, b = Math.floor(seed / 2 ** 32) >>> 0, c = window >>> 0, d = 1;
  const next = () => {
    const t = (a + b + d) | 0;
    d = (d + 1) | 0; a = b ^ (b >>> 9); b = (c + (c << 3)) | 0; c = ((c << 21) | (c >>> 11)) + t | 0;
    return (t >>> 0) / 2 ** 32;
  };
  for (let i = 0; i < 16; i++) next();
  return next;
}
