// The endpoint: generation as a header, then samples as they arrive; questions.

import { WaveReader } from './sound.js';

export class Refused extends Error {
  constructor({ message, code = 'failed', field = null, wait = 0 }) {
    super(message);
    Object.assign(this, { code, field, wait });
  }
}

// The bundle that generates, and the one that answers questions, if there is one.
export async function models(key) {
  const { data, questions } = await (await request('v1/models', { headers: headers(key) })).json();
  return { bundle: data[0], questions };
}

// Without a question, answers about all attributes.
export async function ask(audio, question, options, key) {
  const form = new FormData();
  form.append('file', audio, 'audio.wav');
  if (question) form.append('question', question);
  for (const option of options) form.append('options', option);
  return (await request('v1/audio/questions', { method: 'POST', body: form, headers: headers(key) })).json();
}

// Yields {rate, total, seed, digest, version, unknown}, then Float32Arrays.
export async function* generate(values, key, signal) {
  const body = JSON.stringify({ ...values, format: 'wav', stream: true });
  const answer = await request('v1/audio/generations', {
    method: 'POST', body, signal, headers: { ...headers(key), 'Content-Type': 'application/json' },
  });
  const reader = answer.body.getReader(), wave = new WaveReader();
  let started = false;
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      throw new Refused({ message: 'The connection broke. The received audio can be played.', code: 'broken' });
    }
    if (piece.done) return;
    const samples = wave.feed(piece.value);
    if (wave.rate && !started) {
      started = true;
      yield {
        rate: wave.rate, total: wave.total, seed: Number(answer.headers.get('X-Seed')),
        digest: answer.headers.get('X-Bundle'), version: answer.headers.get('X-Bundle-Version'),
        unknown: (answer.headers.get('X-Unknown-Words') ?? '').split(', ').filter(Boolean).map(decodeURIComponent),
      };
    }
    if (samples.length) yield samples;
  }
}

async function request(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Refused({ message: 'The server does not answer. Is there a connection?', code: 'offline' });
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => null);
  throw new Refused({
    message: `The server answered with ${answer.status}.`, ...said?.error, wait: Number(answer.headers.get('Retry-After') ?? 0),
  });
}

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});
