// The page: a form, the current audio, and the history.

import { Device, whyUnsupported } from './device/device.js';
import { Unable } from './device/messages.js';
import { Picture } from './draw.js';
import * as history from './history.js';
import { Questions } from './questions.js';
import { Refused, generate, models } from './server.js';
import { Sound, wave } from './sound.js';

const EXAMPLES = [
  'a fast fiddle reel in D major', 'a slow waltz for flute in G major', 'a sad tune for piano in A minor',
  'a happy march for trumpet', 'a joyful jig for banjo',
];
const ANY_GUIDANCE = [1, 10]; // range of the slider if the bundle defines none
const LARGEST_SEED = 2 ** 53 - 1;
const at = (id) => document.getElementById(id);
const picture = new Picture(at('wave'), at('spectrogram'));
const device = new Device();
const questions = new Questions({ key, onDevice, keep: () => (bundle ? [bundle.digest] : []) });
let bundle, sound, running, online = false;

// ---- the model

async function loadModel() {
  try {
    const listed = await models(key());
    bundle = listed.bundle;
    online = true;
    localStorage.setItem('bundle', JSON.stringify(bundle));
    localStorage.setItem('questions', JSON.stringify(listed.questions ?? null));
    questions.describe(listed.questions);
  } catch (error) {
    bundle = onDevice() && JSON.parse(localStorage.getItem('bundle'));
    if (error.code === 'unauthorized') at('key-part').hidden = false;
    at('bundle').textContent = error.code === 'unauthorized' ? 'This server requires an API key.' : error.message;
    if (!bundle) return;
    questions.describe(JSON.parse(localStorage.getItem('questions') ?? 'null'));
  }
  const version = bundle.version === null ? '' : `, version ${bundle.version}`;
  const facts = document.createElement('span');
  facts.textContent = `${bundle.id}${version} · ${(bundle.bytes / 1e6).toFixed(1)} MB · ${bundle.licence} · `;
  const digest = document.createElement('code');
  digest.textContent = bundle.digest.slice(0, 12);
  digest.title = `SHA-256 of the bundle's manifest: ${bundle.digest}`;
  at('bundle').replaceChildren(facts, digest);
  at('seconds').max = Math.floor(bundle.max_seconds);
  if (!at('seconds').touched) at('seconds').value = Math.round(bundle.seconds);
  const [min, max] = bundle.guidance_range ?? ANY_GUIDANCE, fixed = bundle.one_pass && !bundle.guidance_range;
  Object.assign(at('guidance'), { min, max, step: bundle.guidance_range ? 'any' : 0.5, disabled: fixed });
  if (!at('guidance').touched) at('guidance').value = bundle.guidance;
  if (!at('temperature').touched) at('temperature').value = bundle.temperature;
  at('guidance-note').textContent = fixed ? 'fixed: it is part of the model' : 'how closely to follow the description';
  showValues();
  if (onDevice()) await enableDevice();
}

function key() { return at('key').value.trim() || sessionStorage.getItem('key') || ''; }

function showValues() {
  at('seconds-value').textContent = `${at('seconds').value} s`;
  at('guidance-value').textContent = Number(at('guidance').value).toFixed(2);
  at('temperature-value').textContent = Number(at('temperature').value).toFixed(2);
}

// ---- on this device

function onDevice() { return localStorage.getItem('device') === 'yes'; }

// Prepare generation on this device. If it is not possible, show the reason and use the server.
async function enableDevice() {
  const why = await whyUnsupported(bundle);
  if (why) return disableDevice(why);
  at('device').checked = true;
  at('device-load').hidden = false;
  const began = performance.now();
  try {
    await navigator.serviceWorker?.register('offline.js').catch(() => {}); // without it, generation works, but not offline
    await device.open(bundle, key(), questions.model ? [questions.model.digest] : [], (done, size) => {
      at('device-load').value = done / size;
      at('device-note').textContent = `loading: ${(done / 1e6).toFixed(1)} of ${(size / 1e6).toFixed(1)} MB`;
    });
    localStorage.setItem('device', 'yes');
    at('device-note').textContent = `ready in ${((performance.now() - began) / 1000).toFixed(1)} s; works without the server and offline`;
  } catch (error) {
    disableDevice(error.message);
  } finally {
    at('device-load').hidden = true;
  }
}

function disableDevice(why) {
  device.close();
  localStorage.removeItem('device');
  at('device').checked = false;
  at('device-note').textContent = `This device cannot generate: ${why}. The server generates instead.`;
}

at('device').addEventListener('change', () => {
  if (at('device').checked && bundle) return enableDevice();
  at('device').checked = false;
  device.close();
  localStorage.removeItem('device');
  at('device-note').textContent = 'downloads the bundle once, then also works offline';
});

// ---- generation

// The values of the form; undefined if one is invalid. Its field then shows the error.
function formValues() {
  showError('prompt');
  showError('seed');
  showUnknownWords([]);
  const prompt = at('prompt').value.trim(), seed = at('seed').value.trim();
  if (!prompt) return showError('prompt', 'Enter a description, such as “a slow waltz for flute”.');
  if (!/^\d*$/.test(seed) || Number(seed) > LARGEST_SEED) return showError('seed', `Enter a whole number from 0 to ${LARGEST_SEED}, or leave the field empty.`);
  const values = { prompt, seconds: Number(at('seconds').value), temperature: Number(at('temperature').value) };
  if (!at('guidance').disabled) values.guidance = Number(at('guidance').value);
  if (seed) values.seed = Number(seed);
  return values;
}

function showError(field, message = '') {
  const element = at(`${field}-wrong`);
  element.textContent = message;
  element.hidden = !message;
  at(field).setAttribute('aria-invalid', String(Boolean(message)));
  if (message) at(field).focus();
}

function showUnknownWords(words) {
  at('prompt-note').textContent = words.length ? `Not known to this model: ${words.join(', ')}.` : '';
  at('prompt-note').hidden = !words.length;
}

async function play(event) {
  event.preventDefault();
  const values = formValues();
  if (!values || running) return;
  running = new AbortController();
  at('play').setAttribute('aria-disabled', 'true'); // a disabled button would lose the keyboard's focus
  at('stop').hidden = false;
  try {
    for (let retry = true; retry;) retry = await attempt(values);
  } finally {
    running = undefined;
    at('play').removeAttribute('aria-disabled');
    if (document.activeElement === at('stop')) at('play').focus();
    at('stop').hidden = true;
  }
}

// One request. Returns whether to retry; it has then waited as long as the server requested.
async function attempt(values) {
  const began = performance.now();
  showStatus('Waiting for the first audio …');
  const here = device.ready, { signal } = running;
  let piece;
  try {
    for await (const part of here ? device.generate(values, signal, online) : generate(values, key(), signal)) {
      if (!piece) {
        piece = { ...values, ...part, where: here ? 'device' : 'server', at: Date.now() };
        open(piece);
        showUnknownWords(part.unknown);
        await sound.play();
        continue;
      }
      sound.add(part);
      piece.factor = (performance.now() - began) / 1000 / (sound.have / sound.rate);
      showStatus(`Generating and playing: ${(sound.have / sound.rate).toFixed(1)} of ${sound.seconds.toFixed(1)} s`);
      showFacts(piece);
    }
    await finish(piece);
    showStatus('');
  } catch (error) {
    if (error instanceof Unable) return disableDevice(error.message), online;
    if (piece) finish(piece);
    if (running.signal.aborted) return showStatus(''), false;
    return failed(error);
  }
  return false;
}

async function failed(error) {
  if (!(error instanceof Refused)) {
    showStatus(`Something went wrong in this page: ${error.message}`, true);
    throw error;
  }
  if (error.code === 'unauthorized') {
    at('key-part').hidden = false;
    at('key').focus();
    return showStatus(key() ? 'The server does not accept this API key.' : 'This server needs an API key: enter the one that its owner gave you.', true), false;
  }
  if (error.field && document.getElementById(`${error.field}-wrong`)) showError(error.field, error.message);
  if (error.field === 'guidance') loadModel(); // the endpoint has another bundle by now
  if (!['busy', 'rate_limited', 'not_ready'].includes(error.code)) return showStatus(sentence(error.message), true), false;
  for (let left = error.wait; left > 0 && !running.signal.aborted; left--) {
    showStatus(`${sentence(error.message)} Retrying in ${left} s.`);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  if (running.signal.aborted) showStatus('');
  return !running.signal.aborted;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? '' : '.');

function showStatus(message, bad = false) {
  at('status').textContent = message;
  at('status').classList.toggle('bad', bad);
}

// ---- current audio

function open(piece) {
  sound?.close();
  sound = new Sound(piece.rate, piece.total);
  at('now').hidden = false;
  at('now-title').textContent = piece.prompt;
  at('download').hidden = true;
  at('seek').max = sound.seconds;
  picture.open(sound);
  showFacts(piece);
}

async function finish(piece) {
  sound.end();
  at('seek').max = sound.seconds; // less than announced if it was stopped
  piece.wave = wave(sound.samples, sound.rate);
  piece.lasts = sound.have / sound.rate;
  showDownload(piece);
  showFacts(piece);
  await history.keep(piece).catch(() => showStatus('This browser cannot store the history.'));
  await renderHistory();
}

function showDownload(piece) {
  URL.revokeObjectURL(at('download').href);
  at('download').href = URL.createObjectURL(piece.wave);
  at('download').download = filename(piece);
  at('download').hidden = false;
}

const filename = (piece) => `${piece.prompt.toLowerCase().replace(/[^a-z0-9]+/g, '-').slice(0, 40)}-${piece.seed}.wav`;

function showFacts(piece) {
  const rows = {
    'Real-time factor': piece.factor === undefined ? '…' : piece.factor.toFixed(2), Seed: piece.seed, Guidance: piece.guidance ?? '–',
    Temperature: piece.temperature, 'Generated on': piece.where === 'device' ? 'this device' : 'the server',
    Bundle: `${piece.digest.slice(0, 12)}${piece.version ? ` (version ${piece.version})` : ''}`,
  };
  at('facts').replaceChildren(...Object.entries(rows).map(([name, value]) => {
    const group = document.createElement('div');
    group.append(Object.assign(document.createElement('dt'), { textContent: name }), Object.assign(document.createElement('dd'), { textContent: value }));
    return group;
  }));
}

function show() {
  requestAnimationFrame(show);
  if (!sound) return;
  if (sound.over) { sound.pause(); sound.from = sound.have; }
  picture.update();
  const now = sound.position / sound.rate;
  if (document.activeElement !== at('seek') || sound.playing) at('seek').value = now;
  at('clock').textContent = `${now.toFixed(1)} / ${sound.seconds.toFixed(1)} s`;
  at('seek').setAttribute('aria-valuetext', `${Math.round(now)} of ${Math.round(sound.seconds)} seconds`);
  at('pause').textContent = sound.playing ? '❚❚' : '▶';
  at('pause').setAttribute('aria-label', sound.playing ? 'Pause' : 'Play again');
}

// ---- history

const addresses = []; // object URLs of the list, revoked when it is rendered again

async function renderHistory() {
  const pieces = await history.all().catch(() => []);
  addresses.splice(0).forEach((address) => URL.revokeObjectURL(address));
  at('past').hidden = pieces.length === 0;
  at('history').replaceChildren(...pieces.map(historyItem));
}

function historyItem(piece) {
  const item = document.createElement('li'), what = document.createElement('div');
  what.className = 'what';
  what.append(piece.prompt);
  const details = `${new Date(piece.at).toLocaleString()} · ${piece.lasts.toFixed(1)} s · seed ${piece.seed} · ${piece.where === 'device' ? 'this device' : 'server'}`;
  what.append(Object.assign(document.createElement('small'), { textContent: details }));
  const link = Object.assign(document.createElement('a'), { textContent: 'Download', download: filename(piece), href: URL.createObjectURL(piece.wave) });
  addresses.push(link.href);
  link.setAttribute('aria-label', `Download ${piece.prompt}`);
  item.append(what, button('Play', piece, replay), button('Use', piece, use), link, button('Delete', piece, () => history.forget(piece.id).then(renderHistory)));
  return item;
}

function button(label, piece, does) {
  const made = Object.assign(document.createElement('button'), { type: 'button', textContent: label });
  made.setAttribute('aria-label', `${label} ${piece.prompt}`);
  made.addEventListener('click', () => does(piece));
  return made;
}

async function replay(piece) {
  if (running) return;
  const bytes = new Uint8Array(await piece.wave.arrayBuffer());
  const view = new DataView(bytes.buffer, 44);
  const samples = Float32Array.from({ length: (bytes.length - 44) / 2 }, (_, i) => view.getInt16(2 * i, true) / 32767);
  open({ ...piece, total: samples.length });
  sound.add(samples);
  sound.end();
  showDownload(piece);
  await sound.play();
  at('now').scrollIntoView({ block: 'nearest' });
}

function use(piece) {
  for (const name of ['prompt', 'seconds', 'guidance', 'temperature', 'seed']) if (piece[name] !== undefined) at(name).value = piece[name];
  showValues();
  at('prompt').focus();
}

// ---- events

at('ask').addEventListener('submit', play);
at('stop').addEventListener('click', () => {
  running?.abort();
  sound?.pause();
});
at('prompt').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey) { event.preventDefault(); at('ask').requestSubmit(); }
});
for (const name of ['seconds', 'guidance', 'temperature']) {
  at(name).addEventListener('input', () => { at(name).touched = true; showValues(); });
}
at('key').addEventListener('change', () => { sessionStorage.setItem('key', at('key').value.trim()); loadModel(); });
at('pause').addEventListener('click', () => (sound.playing ? sound.pause() : sound.play()));
at('seek').addEventListener('input', () => sound.seek(Number(at('seek').value)));
at('what').addEventListener('click', () => questions.identify(sound.samples.subarray(0, sound.have), sound.rate, at('now-title').textContent));
at('forget').addEventListener('click', () => history.forget().then(renderHistory));
at('examples').append(...EXAMPLES.map((text) => {
  const chip = Object.assign(document.createElement('button'), { type: 'button', textContent: text });
  chip.addEventListener('click', () => { at('prompt').value = text; showError('prompt'); at('prompt').focus(); });
  return chip;
}));
addEventListener('resize', () => { if (sound) picture.open(sound); });
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => sound && picture.open(sound));
showValues();
renderHistory();
show();
loadModel();
