// Messages of a worker.

export class Unable extends Error {}

// Messages of a worker, up to one of the kinds `last`. A worker that fails or ends throws `Unable`.
export async function* messagesOf(worker, ...last) {
  const messages = [];
  let wake;
  const put = (one) => { messages.push(one); wake?.(); };
  const onMessage = ({ data }) => put(data);
  const onError = (event) => put({ kind: 'failed', message: event.message || 'its memory is too small, or a file is missing' });
  worker.addEventListener('message', onMessage);
  worker.addEventListener('error', onError);
  try {
    for (;;) {
      while (!messages.length) await new Promise((resolve) => { wake = resolve; });
      const one = messages.shift();
      if (one.kind === 'failed') throw new Unable(one.message);
      yield one;
      if (last.includes(one.kind)) return;
    }
  } finally {
    worker.removeEventListener('message', onMessage);
    worker.removeEventListener('error', onError);
  }
}

// End a worker: waiting calls receive the error event.
export function endWorker(worker) {
  worker?.dispatchEvent(new ErrorEvent('error', { message: 'it was disabled' }));
  worker?.terminate();
}
