// Plays samples while they arrive. Each chunk is scheduled right after the previous one. If it is late, there is a pause;
// nothing is skipped.

const LEAD = 0.06; // seconds between scheduling and playback

export class Sound {
  constructor(rate, total) {
    this.rate = rate;
    this.samples = new Float32Array(total);
    this.have = 0;
    this.complete = false;
    this.playing = false;
    this.from = 0; // start of the next playback, in samples
    this.segments = []; // {at: context seconds, start, end: samples}, in order of playback
  }

  get seconds() { return this.samples.length / this.rate; }

  add(samples) {
    const start = this.have;
    this.samples.set(samples.subarray(0, this.samples.length - start), start);
    this.have = Math.min(this.samples.length, start + samples.length);
    if (this.playing) this.#schedule(start, this.have);
  }

  end() {
    this.complete = true;
    this.samples = this.samples.subarray(0, this.have);
  }

  async play() {
    this.context ??= new AudioContext({ sampleRate: this.rate });
    await this.context.resume();
    if (this.from >= this.have && this.complete) this.from = 0;
    this.playing = true;
    this.segments = [];
    this.nodes = [];
    this.#schedule(this.from, this.have);
  }

  pause() {
    this.from = this.position;
    this.playing = false;
    for (const node of this.nodes ?? []) node.stop();
    this.nodes = [];
  }

  async seek(seconds) {
    const playing = this.playing;
    if (playing) this.pause();
    this.from = Math.min(this.have, Math.round(seconds * this.rate));
    if (playing) await this.play();
  }

  // The index of the current sample.
  get position() {
    if (!this.playing) return this.from;
    const now = this.context.currentTime;
    let place = this.from;
    for (const { at, start, end } of this.segments) {
      if (at <= now) place = Math.min(end, start + Math.round((now - at) * this.rate));
    }
    return place;
  }

  get over() { return this.complete && this.playing && this.position >= this.have; }

  close() {
    if (this.playing) this.pause();
    this.context?.close();
    this.context = undefined;
  }

  #schedule(start, end) {
    if (end <= start) return;
    const buffer = this.context.createBuffer(1, end - start, this.rate);
    buffer.copyToChannel(this.samples.subarray(start, end), 0);
    const node = this.context.createBufferSource();
    node.buffer = buffer;
    node.connect(this.context.destination);
    const last = this.segments.at(-1);
    const due = last ? last.at + (last.end - last.start) / this.rate : 0;
    const at = Math.max(due, this.context.currentTime + LEAD);
    node.start(at);
    this.nodes.push(node);
    this.segments.push({ at, start, end });
  }
}

// A WAV file (16-bit PCM, mono) of samples in [-1, 1].
export function wave(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, 'RIFF'); view.setUint32(4, 36 + 2 * samples.length, true); text(8, 'WAVEfmt ');
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, 'data'); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, i) => view.setInt16(44 + 2 * i, Math.round(Math.max(-1, Math.min(1, sample)) * 32767), true));
  return new Blob([view], { type: 'audio/wav' });
}

// Reads such a file in chunks: `feed` returns the samples that a chunk of bytes completes.
export class WaveReader {
  #left = new Uint8Array(0);
  rate = 0;
  total = 0;

  feed(bytes) {
    const joined = new Uint8Array(this.#left.length + bytes.length);
    joined.set(this.#left);
    joined.set(bytes, this.#left.length);
    let at = 0;
    if (!this.rate) {
      if (joined.length < 44) { this.#left = joined; return new Float32Array(0); }
      const view = new DataView(joined.buffer);
      this.rate = view.getUint32(24, true);
      this.total = view.getUint32(40, true) / 2;
      at = 44;
    }
    const count = Math.floor((joined.length - at) / 2);
    const view = new DataView(joined.buffer, at);
    const samples = Float32Array.from({ length: count }, (_, i) => view.getInt16(2 * i, true) / 32767);
    this.#left = joined.slice(at + 2 * count);
    return samples;
  }
}
