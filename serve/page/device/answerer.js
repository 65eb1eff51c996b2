// Answers questions about audio in JavaScript. It follows tinymusician/runtime/question_answerer.py step by step: windows, rotations
// of the options, "cannot tell", so its probabilities are the engine's.

import { checkQuestion, checkSamples, checkTokens, MAX_LETTERS, normalizeText } from './question_checks.js';

const LETTERS = 'ABCDEFGH', ANSWER_PREFIX = 'The correct answer is:', CANNOT_TELL = 'cannot tell';
const MAX_NEW_TOKENS = 32, MAX_TEXTS = 8, SMALLEST_WEIGHT = 1e-6, SMALLEST = 1e-30;
const WHOLE_WINDOW = 0.9; // the share of a window that audio must fill for attributes that hold for a window alone

export class Answerer {
  // `ort` is onnxruntime-web, `Tokenizer` that of @huggingface/tokenizers, `files` the bundle's bytes by role.
  static async open(ort, Tokenizer, manifest, files) {
    const answerer = new Answerer();
    Object.assign(answerer, { ort, manifest, shape: manifest.architecture, sessions: {} });
    answerer.tokenizer = new Tokenizer(JSON.parse(new TextDecoder().decode(files.tokenizer)), {});
    for (const role of ['audio_encoder', 'lm']) {
      answerer.sessions[role] = await ort.InferenceSession.create(files[role], { executionProviders: ['wasm'], logSeverityLevel: 3 });
      delete files[role];
    }
    return answerer;
  }

  // One state per window of mono audio at the bundle's rate; audio that is shorter than a window is repeated.
  async read(samples) {
    checkSamples(samples);
    const window = Math.round(this.shape.window_seconds * this.shape.sampling_rate), states = [];
    const gain = gainOf(samples, window, this.shape.levels);
    for (const [start, end] of windows(samples.length, window)) {
      const piece = Float32Array.from({ length: window }, (_, index) => gain * samples[start + (index % (end - start))]);
      const { embeddings } = await this.sessions.audio_encoder.run({ audio: new this.ort.Tensor('float32', piece, [1, window]) });
      checkFinite(embeddings.data, 'the audio encoder');
      states.push(await this.#run(embeddings, [[this.shape.end]], this.#emptyCache()));
    }
    return Object.assign(states, { isWindow: samples.length >= WHOLE_WINDOW * window && states.length === 1 });
  }

  // All questions of the manifest; of longer or shorter audio, those that hold for any.
  async askAll(states) {
    const answers = [];
    for (const { attribute, text, options, per_window } of this.manifest.questions) {
      if (states.isWindow || !per_window) answers.push({ ...await this.choose(states, text, options), attribute });
    }
    return answers;
  }

  // It follows `ask` of question_answerer.py.
  async ask(states, question, options) {
    checkQuestion(question, options);
    checkTokens([question, ...options].map((text) => this.#encode(text).length));
    const plain = (text) => normalizeText(text).replace(/\?+$/, ''), { questions } = this.manifest;
    if (isYesNo(options)) {
      const answer = await this.ask(states, question, []);
      if (isYesNo(answer.options.map(({ text }) => text))) return inOrder(answer, options);
    }
    const listed = questions.find(({ text }) => plain(text) === plain(question));
    this.#checkWindows(states, listed);
    if (options.length) return this.#chooseAmong(states, question, options);
    if (listed) return this.#askAbout(states, question, listed);
    const written = await this.generate(states, question), yesNo = yesNoQuestion(question, written.answer, questions);
    const about = yesNo?.attribute ?? questions.find(({ options: values }) => values.includes(written.answer)) ?? comparedAttribute(question, questions);
    this.#checkWindows(states, about);
    if (!yesNo) return about ? this.#askAbout(states, question, about) : written;
    if (!yesNo.named.length) return this.#askAbout(states, question, about);
    let yes = 1, cannot_tell = 0;
    for (const { attribute, values } of yesNo.named) {
      const judged = await this.choose(states, attribute.text, attribute.options);
      yes *= judged.options.reduce((sum, { text, probability }) => sum + (values.includes(text) ? probability : 0), 0);
      cannot_tell = Math.max(cannot_tell, judged.cannot_tell);
    }
    yes = Math.min(yes, 1); // of rounded sums
    return answerOf(question, ['yes', 'no'], [yes, 1 - yes], cannot_tell);
  }

  // One of a user's options, by the values that they name.
  async #chooseAmong(states, question, options) {
    const { texts, members, attribute, isComplete } = optionValues(options, this.manifest.questions);
    this.#checkWindows(states, attribute);
    const answer = await this.choose(states, attribute && isComplete ? attribute.text : question, texts);
    const unknown = attribute && !isComplete; // a word that the model does not know says nothing of the audio
    const { cannot_tell } = unknown ? await this.choose(states, attribute.text, attribute.options) : answer;
    return answerOf(question, options, summed(answer.options.map(({ probability }) => probability), members), cannot_tell);
  }

  // The answer to an attribute's own question, so it is the same for all words that mean it.
  async #askAbout(states, question, { text, options }) {
    return { ...await this.choose(states, text, options), question };
  }

  #checkWindows(states, about) {
    const { window_seconds: window } = this.shape;
    if (about?.per_window && !states.isWindow) throw new Error(`The answer to “${about.text}” is one about ${window} s; the audio has another length.`);
  }

  // The options' probabilities by the likelihoods of their texts, averaged over all rotations of their order; where they follow from a
  // finer attribute, as the mode from the key, the sums of its probabilities.
  async choose(states, question, options) {
    const finer = finerQuestion(options, this.manifest.questions);
    if (finer) {
      const fine = await this.choose(states, finer.text, finer.options);
      return answerOf(question, options, summed(fine.options.map(({ probability }) => probability), finer.members), fine.cannot_tell);
    }
    const listed = options.length <= MAX_LETTERS, rotations = listed ? options.length : 1;
    const sums = states.map(() => new Float64Array(options.length)), unable = states.map(() => 0);
    for (let by = 0; by < rotations; by++) {
      const rotated = [...options.slice(by), ...options.slice(0, by)];
      const prompt = this.#encode(buildPrompt(question, listed ? rotated : []));
      const texts = [...rotated, CANNOT_TELL].map((text) => [...this.#encode(` ${text}`), this.shape.end]);
      for (const [index, state] of states.entries()) {
        const logs = await this.#likelihoods(await this.#extend(state, prompt), texts);
        const shares = softmax(logs.slice(0, -1));
        shares.forEach((share, place) => { sums[index][(place + by) % options.length] += Math.log(Math.max(share, SMALLEST)) / rotations; });
        unable[index] += softmax(logs).at(-1) / rotations;
      }
    }
    const shares = softmax(options.map((_, option) => weighted(unable, sums.map((row) => row[option]))));
    return answerOf(question, options, shares, Math.min(...unable));
  }

  // Free text: of the windows' most probable texts, the one that is most probable in all windows.
  async generate(states, question) {
    const prompt = this.#encode(buildPrompt(question, [])), counts = new Map(), after = [];
    for (const state of states) {
      after.push(await this.#extend(state, prompt));
      const text = (await this.#greedy(after.at(-1))).join(' ');
      counts.set(text, (counts.get(text) ?? 0) + 1);
    }
    const frequent = [...counts].sort((a, b) => b[1] - a[1]).slice(0, MAX_TEXTS).map(([text]) => text.split(' ').filter(Boolean).map(Number));
    const texts = [...frequent, this.#encode(` ${CANNOT_TELL}`)].map((text) => [...text, this.shape.end]);
    const logs = [];
    for (const state of after) logs.push(await this.#likelihoods(state, texts));
    const unable = logs.map((row) => Math.exp(row.at(-1))), cannot_tell = Math.min(...unable);
    const means = frequent.map((_, text) => weighted(unable, logs.map((row) => row[text])));
    const best = means.indexOf(Math.max(...means));
    if (cannot_tell > 0.5) return { question, answer: CANNOT_TELL, probability: cannot_tell, cannot_tell, options: [] };
    return { question, answer: this.tokenizer.decode(frequent[best]).trim(), probability: Math.exp(means[best]), cannot_tell, options: [] };
  }

  async #greedy(state) {
    const tokens = [];
    for (let token; tokens.length < MAX_NEW_TOKENS && (token = mostProbable(state.logits)) !== this.shape.end;) {
      tokens.push(token);
      state = await this.#extend(state, [token]);
    }
    return tokens;
  }

  // The log-likelihood of each text's tokens after a state of one row.
  async #likelihoods(state, texts) {
    const totals = new Float64Array(texts.length), longest = Math.max(...texts.map((text) => text.length)), { vocabulary } = this.shape;
    let all = this.#repeat(state, texts.length);
    for (let depth = 0; depth < longest; depth++) {
      const column = texts.map((text) => text[depth] ?? this.shape.end);
      texts.forEach((text, row) => {
        if (depth < text.length) totals[row] += logShare(all.logits.subarray(row * vocabulary, (row + 1) * vocabulary), column[row]);
      });
      if (depth + 1 < longest) all = await this.#run(this.#emptyEmbeddings(texts.length), column.map((token) => [token]), all.cache);
    }
    return [...totals];
  }

  #repeat({ cache, logits }, count) {
    const each = (data) => { const all = new data.constructor(data.length * count); for (let row = 0; row < count; row++) all.set(data, row * data.length); return all; };
    const tensors = Object.entries(cache).map(([name, { type, data, dims }]) => [name, new this.ort.Tensor(type, each(data), [count, ...dims.slice(1)])]);
    return { cache: Object.fromEntries(tensors), logits: each(logits) };
  }

  #extend(state, ids) { return this.#run(this.#emptyEmbeddings(1), [ids], state.cache); }

  #emptyEmbeddings(rows) { return new this.ort.Tensor('float32', new Float32Array(0), [rows, 0, this.shape.width]); }

  #emptyCache() {
    const { layers, key_value_heads, head_width } = this.shape, cache = {};
    for (let layer = 0; layer < layers; layer++) {
      for (const kind of ['key', 'value']) cache[`past_${kind}.${layer}`] = new this.ort.Tensor('float32', new Float32Array(0), [1, key_value_heads, 0, head_width]);
    }
    return cache;
  }

  async #run(embeddings, rows, cache) {
    const ids = new this.ort.Tensor('int64', BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0].length]);
    const { logits, ...present } = await this.sessions.lm.run({ embeddings, ids, ...cache });
    checkFinite(logits.data, 'the language model');
    return { logits: logits.data, cache: Object.fromEntries(Object.entries(present).map(([name, value]) => [name.replace('present', 'past'), value])) };
  }

  #encode(text) { return this.tokenizer.encode(text).ids; }
}

function answerOf(question, options, shares, cannot_tell) {
  const best = shares.indexOf(Math.max(...shares));
  const [answer, probability] = cannot_tell > 0.5 ? [CANNOT_TELL, cannot_tell] : [options[best], shares[best]];
  return { question, answer, probability, cannot_tell, options: options.map((text, index) => ({ text, probability: shares[index] })) };
}

function isYesNo(options) { return options.map(normalizeText).sort().join(' ') === 'no yes'; }

// An answer of yes or no with a user's spelling and order of the two.
function inOrder(answer, options) {
  const shares = options.map((option) => answer.options.find(({ text }) => text === normalizeText(option)).probability);
  return answerOf(answer.question, options, shares, answer.cannot_tell);
}

// The sums of the probabilities of groups, given by the numbers of their members; together they are one.
function summed(probabilities, members) {
  const groups = (number) => members.filter((numbers) => numbers.includes(number)).length; // that share its probability equally
  const sums = members.map((numbers) => numbers.reduce((sum, number) => sum + probabilities[number] / groups(number), 0)), total = sums.reduce((a, b) => a + b);
  return sums.map((sum) => (total ? sum / total : 1 / sums.length));
}

// The values that options name in people's words; it follows tinymusician/runtime/option_values.py.
export function optionValues(options, attributes) {
  let best = { attribute: null, values: options.map(() => []), count: 0, direct: 0 };
  for (const attribute of attributes) {
    const values = options.map((option) => valuesOf(option, attribute, attributes)), count = values.filter(({ length }) => length).length;
    const direct = options.filter((option) => namedBy(option, attribute).length).length;
    if (count > best.count || (count === best.count && direct > best.direct)) best = { attribute, values, count, direct };
  }
  const each = best.values.map((values, index) => (values.length ? values : [options[index]])), texts = [...new Set(each.flat())];
  const members = each.map((values) => values.map((value) => texts.indexOf(value)));
  return { texts, members, attribute: 2 * best.count > options.length ? best.attribute : null, isComplete: best.count > 0 && best.count === options.length };
}

function valuesOf(option, attribute, attributes) {
  const direct = namedBy(option, attribute);
  if (direct.length) return direct;
  for (const coarse of attributes.filter(({ finer }) => finer?.attribute === attribute.attribute)) {
    const values = namedBy(option, coarse).flatMap((value) => coarse.finer.values[value] ?? []);
    if (values.length) return values.filter((value) => attribute.options.includes(value));
  }
  return [];
}

function namedBy(option, { options, synonyms = {}, other_names = {} }) {
  const singles = [...options.map((value) => [value, [value]]), ...Object.entries(synonyms).map(([name, value]) => [name, [value]])];
  const byText = new Map([...singles, ...Object.entries(other_names)].map(([name, values]) => [normalizeText(name), values]));
  const plain = normalizeText(withAccidentals(option)), bare = plain.replace(/^(an?|the) /, '');
  const text = [plain, bare, bare.replace(/s?[.!]*$/, '')].find((one) => byText.has(one));
  return text === undefined ? [] : byText.get(text);
}

// A text with the signs of accidentals after the names of notes: F# for F sharp.
function withAccidentals(text) {
  const signs = { sharp: '#', flat: 'b', '♯': '#', '♭': 'b' };
  return text.replace(/\b([a-g])[\s-]?(sharp|flat|♯|♭)/gi, (_, letter, sign) => letter + signs[sign.toLowerCase()]);
}

// The question that decides between options, with each option's values of it; it follows tinymusician/runtime/finer_attributes.py.
function finerQuestion(options, questions) {
  for (const { finer } of options.length ? questions : []) {
    if (!finer) continue;
    const values = new Map(Object.entries(finer.values).map(([name, members]) => [name.toLowerCase(), members]));
    const members = options.map((option) => values.get(option.trim().toLowerCase()));
    const fine = questions.find(({ attribute }) => attribute === finer.attribute);
    const numbers = (keys) => keys.map((key) => fine.options.indexOf(key)).filter((number) => number >= 0);
    if (fine && members.every(Boolean)) return { text: fine.text, options: fine.options, members: members.map(numbers) };
  }
  return null;
}

// The attribute that a question of yes or no is about, and the values that must hold; it follows tinymusician/runtime/yes_no.py.
export function yesNoQuestion(question, written, attributes) {
  const value = /^(.+), so (yes|no)$/.exec(written)?.[1];
  const finer = (attribute) => Object.values(attribute.finer?.values ?? {}).flat();
  const about = attributes.filter((attribute) => [...attribute.options, ...finer(attribute)].includes(value));
  if (!/\b(than|not|never|neither|nor|without|but|except|instead|rather|unlikely|hardly|wrong|false|only)\b|n't\b|(?<!or )\bno\b(?!\s*[?.!]*\s*$)/i.test(question)) {
    for (const attribute of about) {
      const values = namedValues(question, attribute);
      if (!values.length || values.length === attribute.options.length) continue;
      const named = [{ attribute, values }];
      for (const other of attributes) {
        if (!other.in_prompts || other === attribute || other.attribute === attribute.finer?.attribute) continue;
        const more = namedValues(question, other);
        if (more.length) named.push({ attribute: other, values: more });
      }
      if (!/\b(and|both)\b/i.test(question) || named.every((one) => one.values.length === 1)) return { attribute, named };
    }
  }
  const attribute = about.find(({ options }) => options.includes(value));
  return attribute ? { attribute, named: [] } : null;
}

// The attribute's values that a text names; it follows tinymusician/runtime/value_names.py.
function namedValues(text, attribute) {
  const names = { ...Object.fromEntries(attribute.options.map((option) => [option, option])), ...attribute.synonyms }, values = [];
  let rest = withAccidentals(text.trim());
  for (const name of Object.keys(names).sort((a, b) => b.length - a.length)) {
    const without = patterns(name).reduce((left, pattern) => left.replace(pattern, ' '), rest);
    if (without !== rest && !values.includes(names[name])) values.push(names[name]);
    rest = without;
  }
  return values;
}

// The one attribute of which a text names several values; it follows tinymusician/runtime/value_names.py.
function comparedAttribute(text, attributes) {
  const compared = attributes.filter((attribute) => namedValues(text, attribute).length > 1);
  return compared.length === 1 ? compared[0] : undefined;
}

function patterns(name) {
  const words = `(?<![\\w#'])${name.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')}`, end = '(?![\\w#])';
  if (name !== 'A' && !name.startsWith('A ')) return [new RegExp(words + end, 'giu')];
  return [new RegExp(`(?<=\\s)${words}${end}`, 'gu'), new RegExp(`${words}(?=\\s*(?:[,;:.?!]|$))`, 'gu'), new RegExp(`${words}(?=[\\s.?!]*$)`, 'giu')];
}

function buildPrompt(text, options) {
  if (!options.length) return `Question: ${text}\n Answer:`;
  return `Question: ${text}\n Options: ${options.map((option, index) => `(${LETTERS[index]}) ${option}`).join(' ')} \n ${ANSWER_PREFIX}`;
}

// Windows that cover all samples; the last one ends with the audio.
function windows(samples, window) {
  if (samples <= window) return [[0, samples]];
  const starts = [];
  for (let start = 0; start < samples - window; start += window) starts.push(start);
  return [...starts, samples - window].map((start) => [start, start + window]);
}

function softmax(logs) {
  const most = Math.max(...logs), powers = logs.map((log) => Math.exp(log - most)), sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

function logShare(logits, token) {
  let most = -Infinity, sum = 0;
  for (const value of logits) most = Math.max(most, value);
  for (const value of logits) sum += Math.exp(value - most);
  return logits[token] - most - Math.log(sum);
}

// The mean of the windows' values; a window weighs as much as it can tell.
function weighted(unable, values) {
  const weights = unable.map((share) => Math.max(1 - share, SMALLEST_WEIGHT));
  return weights.reduce((sum, weight, index) => sum + weight * values[index], 0) / weights.reduce((a, b) => a + b);
}

function mostProbable(logits) {
  return logits.reduce((best, value, token) => (value > logits[best] ? token : best), 0);
}

function checkFinite(values, what) {
  if (!values.every(Number.isFinite)) throw new Error(`The results of ${what} are not numbers; the bundle is damaged.`);
}

// What brings the loudest window to the levels of the training clips; silence stays as it is.
function gainOf(samples, window, levels) {
  const loudest = Math.max(...windows(samples.length, window).map(([start, end]) => Math.sqrt(samples.subarray(start, end).reduce((sum, value) => sum + value * value, 0) / (end - start))));
  if (!levels || loudest < 1e-5) return 1;
  return Math.min(Math.max(loudest, levels[0]), levels[1]) / loudest;
}
