// Answers to questions on this device, in the form in which the server gives them.

import { endWorker, messagesOf } from './messages.js';

export class QuestionDevice {
  // Load a bundle; the browser's storage then holds it and the bundles `keep`. `onProgress` receives the bytes that are done, and
  // their total.
  async open(model, key, keep, onProgress) {
    this.close();
    this.worker = new Worker(new URL('question_worker.js', import.meta.url), { type: 'module' });
    this.worker.postMessage({ kind: 'open', digest: model.digest, key, keep });
    for await (const message of messagesOf(this.worker, 'opened')) if (message.kind === 'loading') onProgress(message.done, message.size);
    this.digest = model.digest;
  }

  // Without a question, answers about all attributes.
  async ask(samples, rate, question, options) {
    this.worker.postMessage({ kind: 'ask', samples, question, options });
    for await (const message of messagesOf(this.worker, 'answers')) {
      if (message.kind === 'answers') return { ...message, audio_seconds: samples.length / rate };
    }
    throw new Error('the worker has ended');
  }

  close() {
    endWorker(this.worker);
    this.worker = this.digest = undefined;
  }
}
