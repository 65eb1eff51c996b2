// Questions about music: a file, a recording or the current audio; the answers as bars.

import { QuestionDevice } from './device/questions.js';
import { ask } from './server.js';
import { wave } from './sound.js';

const MOST_SECONDS = 600, LEAST_SECONDS = 0.5, RECORDED_SECONDS = 15;
const MOST_BARS = 6; // the values of an attribute that are shown, the most probable ones; of a question, all are
const at = (id) => document.getElementById(id);

export class Questions {
  // `where` tells {key, keep, onDevice} at the time of a question.
  constructor(where) {
    Object.assign(this, { where, device: new QuestionDevice() });
    at('question-form').addEventListener('submit', (event) => { event.preventDefault(); this.#askForm(); });
    at('question-file').addEventListener('change', () => {
      const [file] = at('question-file').files;
      at('question-file').value = ''; // so that the same file can be chosen again
      if (file) this.#choose(file);
    });
    at('record').addEventListener('click', () => this.#record());
    const drop = at('questions');
    drop.addEventListener('dragover', (event) => event.preventDefault());
    drop.addEventListener('drop', (event) => {
      event.preventDefault();
      if (event.dataTransfer.files.length) this.#choose(event.dataTransfer.files[0]);
    });
  }

  // The endpoint's bundle that answers questions; without one there is nothing to see.
  describe(model) {
    if (model?.digest !== this.model?.digest) this.device.close();
    this.model = model;
    at('questions').hidden = at('what').hidden = !model;
    if (model) at('question-bundle').textContent = `${model.id} · ${(model.bytes / 1e6).toFixed(1)} MB · ${model.licence}`;
  }

  // What is this? All attributes of some samples.
  async identify(samples, rate, name) {
    this.#select(await resample(samples, rate, this.model.sampling_rate), name);
    at('questions').scrollIntoView({ block: 'nearest' });
    await this.#answer(undefined, []);
  }

  async #choose(file) {
    try {
      this.#select(await decode(await file.arrayBuffer(), this.model.sampling_rate), file.name ?? 'recording');
    } catch {
      this.samples = undefined;
      this.#say(`${file.name ?? 'The recording'} cannot be read as audio.`, true);
    }
  }

  #select(samples, name) {
    const seconds = samples.length / this.model.sampling_rate;
    this.samples = undefined;
    at('answers').replaceChildren();
    if (seconds < LEAST_SECONDS || seconds > MOST_SECONDS) return this.#say(`${name} lasts ${seconds.toFixed(1)} s; ${LEAST_SECONDS} to ${MOST_SECONDS} s are allowed.`, true);
    this.samples = samples;
    at('question-note').textContent = `${name}, ${seconds.toFixed(1)} s`;
    this.#say('');
  }

  async #record() {
    if (this.recorder) return this.recorder.stop();
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false } });
    } catch {
      return this.#say('There is no microphone, or this page may not use it.', true);
    }
    const parts = [];
    this.recorder = new MediaRecorder(stream);
    this.recorder.ondataavailable = ({ data }) => parts.push(data);
    this.recorder.onstop = () => {
      stream.getTracks().forEach((track) => track.stop());
      this.recorder = undefined;
      clearTimeout(this.limit);
      at('record').textContent = 'Record';
      this.#choose(new Blob(parts));
    };
    this.recorder.start();
    this.limit = setTimeout(() => this.recorder?.stop(), 1000 * RECORDED_SECONDS);
    at('record').textContent = 'Stop recording';
    at('question-note').textContent = `recording, ${RECORDED_SECONDS} s at most`;
  }

  async #askForm() {
    const question = at('question').value.trim();
    const options = at('options').value.split('\n').map((text) => text.trim()).filter(Boolean);
    at('answers').replaceChildren();
    if (!this.samples) return this.#say('Choose a file, or record something, first.', true);
    if (options.length && !question) return this.#say('Possible answers need a question.', true);
    if (options.length === 1) return this.#say('One possible answer is no choice: enter two or more, or none.', true);
    await this.#answer(question || undefined, options);
  }

  async #answer(question, options) {
    if (this.busy || !this.samples) return;
    this.busy = true;
    at('answers').replaceChildren();
    at('question-ask').setAttribute('aria-disabled', 'true');
    this.#say('Listening …');
    try {
      const began = performance.now(), here = this.where.onDevice();
      const result = await (here ? this.#onDevice(question, options) : ask(wave(this.samples, this.model.sampling_rate), question, options, this.where.key()));
      this.#show(result, here, (performance.now() - began) / 1000);
      this.#say('');
    } catch (error) {
      this.#say(error.message.charAt(0).toUpperCase() + error.message.slice(1), true);
    } finally {
      this.busy = false;
      at('question-ask').removeAttribute('aria-disabled');
    }
  }

  async #onDevice(question, options) {
    if (this.device.digest !== this.model.digest) {
      await this.device.open(this.model, this.where.key(), this.where.keep(), (done, size) => this.#say(`Loading: ${(done / 1e6).toFixed(1)} of ${(size / 1e6).toFixed(1)} MB`));
    }
    return this.device.ask(this.samples, this.model.sampling_rate, question, options);
  }

  #show({ answers, windows, audio_seconds }, here, took) {
    const about = document.createElement('p');
    about.className = 'note';
    about.textContent = `${audio_seconds.toFixed(1)} s in ${windows} window${windows > 1 ? 's' : ''}, answered on ${here ? 'this device' : 'the server'} in ${took.toFixed(1)} s`;
    at('answers').replaceChildren(...answers.map(answerElement), about);
  }

  #say(message, bad = false) {
    at('question-status').textContent = message;
    at('question-status').classList.toggle('bad', bad);
  }
}

function answerElement({ question, attribute, answer, probability, cannot_tell, options }) {
  const group = document.createElement('div'), title = document.createElement('h3'), list = document.createElement('ul');
  title.textContent = `${attribute ? attribute.replaceAll('_', ' ') : question} `;
  title.append(Object.assign(document.createElement('strong'), { textContent: answer }), ` ${probability.toFixed(2)}`);
  // Bars are shares of everything: what cannot be told has one, too.
  const shares = options.map(({ text, probability: share }) => ({ text, probability: share * (1 - cannot_tell) }));
  shares.sort((a, b) => b.probability - a.probability);
  const shown = attribute ? shares.slice(0, MOST_BARS) : shares, others = shares.slice(shown.length);
  if (others.length) shown.push({ text: `${others.length} others`, probability: others.reduce((sum, { probability: share }) => sum + share, 0) });
  if (shown.length && cannot_tell >= 0.005) shown.push({ text: 'cannot tell', probability: cannot_tell });
  list.append(...shown.map(({ text, probability: share }) => {
    const item = document.createElement('li'), bar = document.createElement('meter');
    Object.assign(bar, { min: 0, max: 1, value: share });
    bar.setAttribute('aria-label', `${text}: ${share.toFixed(2)}`);
    item.append(Object.assign(document.createElement('span'), { textContent: text }), bar, Object.assign(document.createElement('span'), { textContent: share.toFixed(2) }));
    return item;
  }));
  group.append(title, list);
  return group;
}

// Encoded audio as mono samples at a rate.
async function decode(bytes, rate) {
  const audio = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes);
  const mono = new Float32Array(audio.length);
  for (let channel = 0; channel < audio.numberOfChannels; channel++) {
    audio.getChannelData(channel).forEach((sample, i) => { mono[i] += sample / audio.numberOfChannels; });
  }
  return mono;
}

async function resample(samples, from, to) {
  if (from === to) return samples.slice();
  const context = new OfflineAudioContext(1, Math.ceil((samples.length * to) / from), to), buffer = context.createBuffer(1, samples.length, from);
  buffer.copyToChannel(samples, 0);
  const node = context.createBufferSource();
  node.buffer = buffer;
  node.connect(context.destination);
  node.start();
  return (await context.startRendering()).getChannelData(0);
}
