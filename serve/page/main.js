// The page: from words to sound, and what was heard before.

import { Device, Unable, whyUnsupported } from './device/device.js';
import { Picture } from './draw.js';
import * as past from './history.js';
import { Refused, generate, model } from './server.js';
import { Sound, wave } from './sound.js';

const EXAMPLES = [
  'a fast fiddle reel in D major', 'a slow waltz for flute in G major', 'a sad piano piece in A minor',
  'a happy march for brass', 'a lively jig for accordion',
];
const ANY_GUIDANCE = [1, 10]; // what the slider offers where the bundle says nothing of it
const LARGEST_SEED = 2 ** 53 - 1;
const at = (id) => document.getElementById(id);
const picture = new Picture(at('wave'), at('spectrogram'));
const device = new Device();
let bundle, sound, running, played, online = false;

// ---- what plays here

async function ask() {
  try {
    bundle = await model(key());
    online = true;
    localStorage.setItem('bundle', JSON.stringify(bundle));
  } catch (error) {
    bundle = onDevice() && JSON.parse(localStorage.getItem('bundle'));
    if (error.code === 'unauthorized') at('key-part').hidden = false;
    at('bundle').textContent = error.code === 'unauthorized' ? 'An API key is needed here.' : error.message;
    if (!bundle) return;
  }
  const version = bundle.version === null ? '' : `, version ${bundle.version}`;
  const facts = document.createElement('span');
  facts.textContent = `${bundle.id}${version} · ${(bundle.bytes / 1e6).toFixed(1)} MB · ${bundle.licence} · `;
  const digest = document.createElement('code');
  digest.textContent = bundle.digest.slice(0, 12);
  digest.title = `SHA-256 of the bundle's manifest: ${bundle.digest}`;
  at('bundle').replaceChildren(facts, digest);
  at('seconds').max = Math.floor(bundle.most_seconds);
  if (!at('seconds').touched) at('seconds').value = Math.round(bundle.seconds);
  const [least, most] = bundle.guidance_range ?? ANY_GUIDANCE, fixed = bundle.one_pass && !bundle.guidance_range;
  Object.assign(at('guidance'), { min: least, max: most, step: bundle.guidance_range ? 'any' : 0.5, disabled: fixed });
  if (!at('guidance').touched) at('guidance').value = bundle.guidance;
  if (!at('temperature').touched) at('temperature').value = bundle.temperature;
  at('guidance-note').textContent = fixed ? 'this model has it in its weights' : 'how closely to follow the words';
  tell();
  if (onDevice()) await settle();
}

const key = () => at('key').value.trim() || sessionStorage.getItem('key') || '';

function tell() {
  at('seconds-value').textContent = `${at('seconds').value} s`;
  at('guidance-value').textContent = Number(at('guidance').value).toFixed(2);
  at('temperature-value').textContent = Number(at('temperature').value).toFixed(2);
}

// ---- on this device

const onDevice = () => localStorage.getItem('device') === 'yes';

// Make the device ready to play, or say why it cannot; the server plays then.
async function settle() {
  const why = await whyUnsupported(bundle);
  if (why) return give(why);
  at('device').checked = true;
  at('device-load').hidden = false;
  const began = performance.now();
  try {
    await navigator.serviceWorker?.register('offline.js').catch(() => {}); // without it the device plays, but not offline
    await device.open(bundle, key(), (done, size) => {
      at('device-load').value = done / size;
      at('device-note').textContent = `loading: ${(done / 1e6).toFixed(1)} of ${(size / 1e6).toFixed(1)} MB`;
    });
    localStorage.setItem('device', 'yes');
    at('device-note').textContent = `ready in ${((performance.now() - began) / 1000).toFixed(1)} s; plays without the server, also offline`;
  } catch (error) {
    give(error.message);
  } finally {
    at('device-load').hidden = true;
  }
}

function give(why) {
  device.close();
  localStorage.removeItem('device');
  at('device').checked = false;
  at('device-note').textContent = `This device cannot play it: ${why}. The server plays instead.`;
}

at('device').addEventListener('change', () => {
  if (at('device').checked && bundle) return settle();
  at('device').checked = false;
  device.close();
  localStorage.removeItem('device');
  at('device-note').textContent = 'loads the bundle once; then it plays here, also without a network';
});

// ---- from words to sound

// What the form says; undefined if something in it is wrong, which is then shown where it is.
function formValues() {
  wrong('prompt');
  wrong('seed');
  const prompt = at('prompt').value.trim(), seed = at('seed').value.trim();
  if (!prompt) return wrong('prompt', 'Some words are needed, such as “a slow waltz for flute”.');
  if (!/^\d*$/.test(seed) || Number(seed) > LARGEST_SEED) return wrong('seed', `A whole number up to ${LARGEST_SEED}, or nothing.`);
  const values = { prompt, seconds: Number(at('seconds').value), temperature: Number(at('temperature').value) };
  if (!at('guidance').disabled) values.guidance = Number(at('guidance').value);
  if (seed) values.seed = Number(seed);
  return values;
}

function wrong(field, message = '') {
  const place = at(`${field}-wrong`);
  place.textContent = message;
  place.hidden = !message;
  at(field).setAttribute('aria-invalid', String(Boolean(message)));
  if (message) at(field).focus();
}

async function play(event) {
  event.preventDefault();
  const values = formValues();
  if (!values || running) return;
  running = new AbortController();
  at('play').disabled = true;
  at('stop').hidden = false;
  try {
    for (let again = true; again;) again = await attempt(values);
  } finally {
    running = undefined;
    at('play').disabled = false;
    at('stop').hidden = true;
  }
}

// One request; returns whether to ask again, after the wait that the server asked for.
async function attempt(values) {
  const began = performance.now();
  say('Waiting for the first sound …');
  const here = device.ready, { signal } = running;
  let piece;
  try {
    for await (const part of here ? device.generate(values, signal, online) : generate(values, key(), signal)) {
      if (!piece) {
        piece = { ...values, ...part, where: here ? 'device' : 'server', at: Date.now() };
        open(piece);
        await sound.play();
        continue;
      }
      sound.add(part);
      piece.factor = (performance.now() - began) / 1000 / (sound.have / sound.rate);
      say(`Playing while it is made: ${(sound.have / sound.rate).toFixed(1)} of ${sound.seconds.toFixed(1)} s`);
      facts(piece);
    }
    await finish(piece);
    say('');
  } catch (error) {
    if (error instanceof Unable) return give(error.message), online;
    if (piece) finish(piece);
    if (running.signal.aborted) return say(''), false;
    return failed(error);
  }
  return false;
}

async function failed(error) {
  if (!(error instanceof Refused)) {
    say(`Something went wrong in this page: ${error.message}`, true);
    throw error;
  }
  if (error.code === 'unauthorized') {
    at('key-part').hidden = false;
    at('key').focus();
  }
  if (error.field && document.getElementById(`${error.field}-wrong`)) wrong(error.field, error.message);
  if (error.field === 'guidance') ask(); // another bundle plays by now
  if (!['busy', 'rate_limited', 'not_ready'].includes(error.code)) return say(sentence(error.message), true), false;
  for (let left = error.wait; left > 0 && !running.signal.aborted; left--) {
    say(`${sentence(error.message)} Asking again in ${left} s.`);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  if (running.signal.aborted) say('');
  return !running.signal.aborted;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? '' : '.');

function say(message, bad = false) {
  at('status').textContent = message;
  at('status').classList.toggle('bad', bad);
}

// ---- what is heard now

function open(piece) {
  sound?.close();
  played = piece;
  sound = new Sound(piece.rate, piece.total);
  at('now').hidden = false;
  at('now-title').textContent = piece.prompt;
  at('download').hidden = true;
  at('seek').max = sound.seconds;
  picture.open(sound);
  facts(piece);
}

async function finish(piece) {
  sound.end();
  piece.wave = wave(sound.samples, sound.rate);
  piece.lasts = sound.have / sound.rate;
  offer(piece);
  facts(piece);
  await past.keep(piece).catch(() => say('This browser keeps no history.'));
  await remember();
}

function offer(piece) {
  URL.revokeObjectURL(at('download').href);
  at('download').href = URL.createObjectURL(piece.wave);
  at('download').download = filename(piece);
  at('download').hidden = false;
}

const filename = (piece) => `${piece.prompt.toLowerCase().replace(/[^a-z0-9]+/g, '-').slice(0, 40)}-${piece.seed}.wav`;

function facts(piece) {
  const rows = {
    'Real-time factor': piece.factor === undefined ? '…' : piece.factor.toFixed(2), Seed: piece.seed, Guidance: piece.guidance ?? '–',
    Temperature: piece.temperature, 'Played by': piece.where === 'device' ? 'this device' : 'the server',
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
  at('pause').textContent = sound.playing ? '❚❚' : '▶';
  at('pause').setAttribute('aria-label', sound.playing ? 'Pause' : 'Play again');
}

// ---- what was heard before

const addresses = []; // of the sounds in the list, given back when it is made anew

async function remember() {
  const pieces = await past.all().catch(() => []);
  addresses.splice(0).forEach((address) => URL.revokeObjectURL(address));
  at('past').hidden = pieces.length === 0;
  at('history').replaceChildren(...pieces.map(line));
}

function line(piece) {
  const item = document.createElement('li'), what = document.createElement('div');
  what.className = 'what';
  what.append(piece.prompt);
  const details = `${new Date(piece.at).toLocaleString()} · ${piece.lasts.toFixed(1)} s · seed ${piece.seed} · ${piece.where === 'device' ? 'this device' : 'server'}`;
  what.append(Object.assign(document.createElement('small'), { textContent: details }));
  const link = Object.assign(document.createElement('a'), { textContent: 'Download', download: filename(piece), href: URL.createObjectURL(piece.wave) });
  addresses.push(link.href);
  link.setAttribute('aria-label', `Download ${piece.prompt}`);
  item.append(what, button('Play', piece, again), button('Use', piece, use), link, button('Forget', piece, () => past.forget(piece.id).then(remember)));
  return item;
}

function button(label, piece, does) {
  const made = Object.assign(document.createElement('button'), { type: 'button', textContent: label });
  made.setAttribute('aria-label', `${label} ${piece.prompt}`);
  made.addEventListener('click', () => does(piece));
  return made;
}

async function again(piece) {
  if (running) return;
  const bytes = new Uint8Array(await piece.wave.arrayBuffer());
  const view = new DataView(bytes.buffer, 44);
  const samples = Float32Array.from({ length: (bytes.length - 44) / 2 }, (_, i) => view.getInt16(2 * i, true) / 32767);
  open({ ...piece, total: samples.length });
  sound.add(samples);
  sound.end();
  offer(piece);
  await sound.play();
  at('now').scrollIntoView({ block: 'nearest' });
}

function use(piece) {
  for (const name of ['prompt', 'seconds', 'guidance', 'temperature', 'seed']) if (piece[name] !== undefined) at(name).value = piece[name];
  tell();
  at('prompt').focus();
}

// ---- wiring

at('ask').addEventListener('submit', play);
at('stop').addEventListener('click', () => running?.abort());
at('prompt').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey) { event.preventDefault(); at('ask').requestSubmit(); }
});
for (const name of ['seconds', 'guidance', 'temperature']) {
  at(name).addEventListener('input', () => { at(name).touched = true; tell(); });
}
at('key').addEventListener('change', () => { sessionStorage.setItem('key', at('key').value.trim()); ask(); });
at('pause').addEventListener('click', () => (sound.playing ? sound.pause() : sound.play()));
at('seek').addEventListener('input', () => sound.seek(Number(at('seek').value)));
at('forget').addEventListener('click', () => past.forget().then(remember));
at('examples').append(...EXAMPLES.map((text) => {
  const chip = Object.assign(document.createElement('button'), { type: 'button', textContent: text });
  chip.addEventListener('click', () => { at('prompt').value = text; wrong('prompt'); at('prompt').focus(); });
  return chip;
}));
addEventListener('resize', () => { if (sound) picture.open(sound); });
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => sound && picture.open(sound));
tell();
remember();
show();
ask();
