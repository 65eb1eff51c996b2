// The history of generated audio in this browser (IndexedDB), the latest entries only.

const MAX_ENTRIES = 20;

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open('tinymusician-history', 1);
    request.onupgradeneeded = () => request.result.createObjectStore('pieces', { keyPath: 'id', autoIncrement: true });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function within(mode, work) {
  const database = await opened();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction('pieces', mode);
      const request = work(transaction.objectStore('pieces'));
      transaction.oncomplete = () => resolve(request?.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

// The latest first: {id, at, prompt, seconds, seed, guidance, temperature, where, digest, factor, wave}.
export async function all() {
  return (await within('readonly', (store) => store.getAll())).reverse();
}

export async function keep(piece) {
  await within('readwrite', (store) => store.add(piece));
  for (const old of (await all()).slice(MAX_ENTRIES)) await within('readwrite', (store) => store.delete(old.id));
}

export const forget = (id) => within('readwrite', (store) => (id === undefined ? store.clear() : store.delete(id)));
