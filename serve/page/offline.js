// A service worker that caches the page for offline use. It tries the network first, so updates appear at once, and
// ignores requests for anything but the page's own files.

const CACHE = 'tinymusician-page';
const FILES = [
  './', 'style.css', 'icon.svg', 'main.js', 'questions.js', 'server.js', 'sound.js', 'draw.js', 'history.js', 'device/device.js', 'device/worker.js',
  'device/bundle.js', 'device/engine.js', 'device/messages.js', 'device/questions.js', 'device/question_worker.js', 'device/answerer.js', 'device/question_checks.js', 'vendor/ort.wasm.min.mjs', 'vendor/ort-wasm-simd-threaded.mjs',
  'vendor/ort-wasm-simd-threaded.wasm', 'vendor/tokenizers.min.mjs',
];

addEventListener('install', (event) => event.waitUntil((async () => {
  await (await caches.open(CACHE)).addAll(FILES);
  await skipWaiting();
})()));

addEventListener('activate', (event) => event.waitUntil(clients.claim()));

addEventListener('fetch', (event) => {
  const { url, method } = event.request, { scope } = registration; // the page may be behind a proxy's path
  const name = url.slice(scope.length).replace(/[?#].*/, '') || './';
  if (method !== 'GET' || !url.startsWith(scope) || !FILES.includes(name)) return; // other programs may share the origin later
  event.respondWith((async () => {
    const cache = await caches.open(CACHE);
    try {
      const answer = await fetch(event.request);
      if (answer.ok) event.waitUntil(cache.put(event.request, answer.clone()).catch(() => {})); // a full cache is not an error
      return answer;
    } catch (error) {
      const cached = await cache.match(event.request, { ignoreSearch: true });
      if (cached) return cached;
      throw error;
    }
  })());
});
