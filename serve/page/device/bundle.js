// A bundle in the browser's storage: downloaded once, and each file is checked against its SHA-256 before use.
// The digest that the server names is that of manifest.json, which names every other file by its own.

const ROLES = ['tokenizer', 'text_encoder', 'cross', 'decoder', 'codec_decoder', 'weights', 'audio_encoder', 'lm'];
const CACHE = 'tinymusician-bundles';

const hex = (buffer) => Array.from(new Uint8Array(buffer), (byte) => byte.toString(16).padStart(2, '0')).join('');
const ROOT = new URL('..', import.meta.url); // the endpoint may be behind a proxy's path
const address = (digest, path) => new URL(`v1/bundles/${digest}/${path}`, ROOT).href;

async function checked(bytes, digest, path) {
  const actual = hex(await crypto.subtle.digest('SHA-256', bytes));
  if (actual !== digest) throw new Error(`${path} does not match its SHA-256 digest and is not used.`);
  return bytes;
}

async function download(cache, digest, path, expected, key, onProgress) {
  const url = address(digest, path), there = await cache.match(url);
  if (there) {
    try {
      return await checked(await there.arrayBuffer(), expected, path);
    } catch {
      await cache.delete(url); // damaged in the cache: download it again
    }
  }
  const answer = await fetch(url, { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (!answer.ok) throw new Error(`Downloading ${path} failed with status ${answer.status}.`);
  const parts = [], reader = answer.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    onProgress(part.value.length);
  }
  const bytes = await checked(await new Blob(parts).arrayBuffer(), expected, path);
  await cache.put(url, new Response(bytes));
  return bytes;
}

// The manifest, and the files' bytes by role. `onProgress` receives the downloaded and the total bytes. Bundles other than `keep`
// are removed.
export async function open(digest, key, keep, onProgress) {
  const cache = await caches.open(CACHE);
  const manifest = JSON.parse(new TextDecoder().decode(await download(cache, digest, 'manifest.json', digest, key, () => {})));
  const parts = manifest.files.filter((file) => ROLES.includes(file.role));
  const size = parts.reduce((sum, file) => sum + file.size, 0), files = {};
  let done = 0;
  for (const file of parts) {
    const before = done;
    const bytes = await download(cache, digest, file.path, file.sha256, key, (count) => onProgress((done += count), size));
    onProgress((done = before + file.size), size);
    files[file.role] = new Uint8Array(bytes);
  }
  await forgetAllBut([digest, ...keep]);
  return { manifest, files };
}

async function forgetAllBut(digests) {
  const cache = await caches.open(CACHE);
  for (const request of await cache.keys()) {
    if (!digests.some((digest) => request.url.startsWith(address(digest, '')))) await cache.delete(request);
  }
}
