// The waveform and the spectrogram of audio that may still be arriving.

const LOW = 60; // Hz at the bottom
const FLOOR = -85; // dB that are black
const COLOURS = [[12, 10, 29], [66, 15, 94], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 200]];

export class Picture {
  constructor(wave, spectrogram) {
    this.wave = wave;
    this.spectrogram = spectrogram;
    this.drawn = 0;
  }

  // Start again for other audio, at the current size of the canvases.
  open(sound) {
    this.sound = sound;
    this.drawn = 0;
    this.peaks = [];
    this.total = sound.samples.length;
    for (const canvas of [this.wave, this.spectrogram]) {
      const box = canvas.getBoundingClientRect();
      canvas.width = Math.max(1, Math.round(box.width * devicePixelRatio));
      canvas.height = Math.max(1, Math.round(box.height * devicePixelRatio));
    }
    this.size = sound.rate > 24000 ? 2048 : 1024;
    this.window = Float32Array.from({ length: this.size }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / this.size));
  }

  // Draw the received samples and the playhead. `done` means that all have arrived.
  update() {
    const { sound } = this;
    if (!sound) return;
    const width = this.spectrogram.width;
    while (this.drawn < width) {
      const middle = Math.floor(((this.drawn + 0.5) / width) * this.total);
      if (middle + this.size / 2 > sound.have && !sound.complete) break;
      this.#column(this.drawn, middle);
      this.drawn += 1;
    }
    this.#waveform();
  }

  #column(x, middle) {
    const { samples } = this.sound;
    const real = new Float32Array(this.size), imaginary = new Float32Array(this.size);
    const first = middle - this.size / 2;
    for (let i = 0; i < this.size; i++) real[i] = (samples[first + i] ?? 0) * this.window[i];
    fft(real, imaginary);
    const context = this.spectrogram.getContext('2d'), height = this.spectrogram.height;
    const column = context.createImageData(1, height), top = this.sound.rate / 2;
    for (let y = 0; y < height; y++) {
      const hertz = LOW * (top / LOW) ** (1 - (y + 0.5) / height);
      const place = (hertz / this.sound.rate) * this.size, bin = Math.floor(place), share = place - bin;
      const power = (b) => real[b] ** 2 + imaginary[b] ** 2;
      const value = (1 - share) * power(bin) + share * power(Math.min(bin + 1, this.size / 2));
      const decibels = 10 * Math.log10(value / (this.size / 4) ** 2 + 1e-12);
      column.data.set(colour(1 - decibels / FLOOR), 4 * y);
    }
    context.putImageData(column, x, 0);
  }

  #waveform() {
    const { sound } = this, canvas = this.wave, context = canvas.getContext('2d'), style = getComputedStyle(canvas);
    const { width, height } = canvas, each = this.total / width;
    const ready = Math.floor(sound.have / each);
    for (let x = this.peaks.length; x < ready; x++) {
      let peak = 0;
      for (let i = Math.floor(x * each); i < (x + 1) * each; i++) peak = Math.max(peak, Math.abs(sound.samples[i]));
      this.peaks.push(peak);
    }
    const playhead = sound.position / each;
    context.clearRect(0, 0, width, height);
    context.fillStyle = style.getPropertyValue('--line');
    context.fillRect(0, height / 2 - 0.5, width, 1);
    this.peaks.forEach((peak, x) => {
      context.fillStyle = style.getPropertyValue(x < playhead ? '--wave' : '--wave-faint');
      const tall = Math.max(1, peak * height);
      context.fillRect(x, (height - tall) / 2, 1, tall);
    });
    context.fillStyle = style.getPropertyValue('--ink');
    context.fillRect(Math.min(playhead, width - 2), 0, 2, height);
  }
}

function colour(share) {
  const place = Math.max(0, Math.min(0.9999, share)) * (COLOURS.length - 1), low = Math.floor(place);
  return [0, 1, 2].map((i) => COLOURS[low][i] + (place - low) * (COLOURS[low + 1][i] - COLOURS[low][i])).concat(255);
}

// In place, radix 2 (Cooley and Tukey 1965); the length is a power of two.
function fft(real, imaginary) {
  const size = real.length;
  for (let i = 1, j = 0; i < size; i++) {
    let bit = size >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) { [real[i], real[j]] = [real[j], real[i]]; [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]]; }
  }
  for (let length = 2; length <= size; length <<= 1) {
    const half = length / 2;
    for (let k = 0; k < half; k++) {
      const angle = (-2 * Math.PI * k) / length, c = Math.cos(angle), s = Math.sin(angle);
      for (let start = k; start < size; start += length) {
        const other = start + half;
        const re = real[other] * c - imaginary[other] * s, im = real[other] * s + imaginary[other] * c;
        real[other] = real[start] - re; imaginary[other] = imaginary[start] - im;
        real[start] += re; imaginary[start] += im;
      }
    }
  }
}
