// The pull protocol once more, written from docs/protocol.md alone: node tests/vectors.mjs docs/protocol/vectors.json
// prints for every case what this client does: {"cases": {NAME: "accept" | "refuse: WHY"}, "ranges": […]}.
import { createHash, createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";

const ROOT = "application/vnd.tinymusician.root+json";
const RELEASE = "application/vnd.tinymusician.release+json";
const TIMESTAMP = "application/vnd.tinymusician.timestamp+json";
const DATE = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$/;
const DEVICE = /^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)/i;
const HEX = /^[0-9a-f]{64}$/, WORD = /^[a-z0-9][a-z0-9-]{0,63}$/, PART = /^[A-Za-z0-9_][A-Za-z0-9._-]*$/;

class Refused extends Error {}
const insist = (truth, why) => { if (!truth) throw new Refused(why); };
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
const keyId = (hex) => sha256(Buffer.from(hex, "hex"));
const isObject = (x) => x !== null && typeof x === "object" && !Array.isArray(x);

function parse(bytes) {
  try { return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)); }
  catch { throw new Refused("no JSON"); }
}

function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (isObject(value)) {
    const names = Object.keys(value).sort();
    insist(names.every((name) => /^[\x00-\x7f]*$/.test(name)), "a name is not in ASCII");
    return `{${names.map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`).join(",")}}`;
  }
  insist(typeof value !== "number" || Number.isSafeInteger(value), "a number is not whole, or too large");
  return JSON.stringify(value);
}

function envelope(bytes) {
  insist(bytes.length <= 1048576, "too large");
  const parsed = parse(bytes);
  insist(isObject(parsed) && typeof parsed.payload === "string" && typeof parsed.payloadType === "string", "no envelope");
  insist(Array.isArray(parsed.signatures) && parsed.signatures.length >= 1 && parsed.signatures.length <= 16, "signatures");
  return { kind: parsed.payloadType, payload: Buffer.from(parsed.payload, "base64"), signatures: parsed.signatures };
}

function publicKey(hex) {
  const bytes = Buffer.from(hex, "hex"), text = (from, to) => bytes.subarray(from, to).toString("base64url");
  if (hex.length === 64) return createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x: text(0, 32) }, format: "jwk" });
  insist(hex.length === 130 && bytes[0] === 4, "no public key");
  return createPublicKey({ key: { kty: "EC", crv: "P-256", x: text(1, 33), y: text(33, 65) }, format: "jwk" });
}

// `signers` are {keys: public keys by id, threshold}; the ids of different keys that signed are counted.
function unseal(bytes, kind, signers) {
  const { kind: said, payload, signatures } = envelope(bytes);
  insist(said === kind, "another kind");
  const message = Buffer.concat([Buffer.from(`DSSEv1 ${Buffer.byteLength(kind)} ${kind} ${payload.length} `), payload]);
  const good = new Set();
  for (const { keyid, sig } of signatures) {
    const hex = signers.keys[keyid];
    if (hex && verify(hex.length === 64 ? null : "sha256", message, publicKey(hex), Buffer.from(sig, "base64"))) good.add(keyid);
  }
  insist(good.size >= signers.threshold && good.size >= 1, "too few trusted signatures");
  const content = parse(payload);
  insist(isObject(content) && canonical(content) === payload.toString("utf-8"), "not canonical");
  return content;
}

const whole = (x, least, most) => Number.isSafeInteger(x) && x >= least && x <= most;
const dates = (content) => insist(DATE.test(content.created) && DATE.test(content.expires), "a date");
const format = (content) => insist(content.spec === 2, "another format");
const SCHEMES = { ed25519: 64, "ecdsa-p256-sha256": 130 };

function signers(content, role) {
  const { keyids, threshold } = content.roles[role];
  const supported = keyids.filter((id) => SCHEMES[content.keys[id].scheme] === content.keys[id].public.length);
  return { keys: Object.fromEntries(supported.map((id) => [id, content.keys[id].public])), threshold };
}

function checkRoot(content) {
  insist(isObject(content), "no object");
  format(content);
  dates(content);
  insist(whole(content.version, 1, 1_000_000), "version");
  insist(isObject(content.keys) && Object.entries(content.keys).every(([id, one]) => keyId(one.public) === id), "keys");
  insist(isObject(content.roles) && content.roles.root && content.roles.release, "roles");
  const named = Object.values(content.roles).flatMap(({ keyids, threshold }) => {
    insist(Array.isArray(keyids) && whole(keyids.length, 1, 8) && whole(threshold, 1, keyids.length), "a threshold");
    return keyids;
  });
  insist(new Set(named).size === named.length && named.every((id) => id in content.keys), "a key for both, or for none");
}

function root(bytes, version, before) {
  const content = unseal(bytes, ROOT, before);
  checkRoot(content);
  insist(content.version === version, "another number");
  unseal(bytes, ROOT, signers(content, "root"));
  return content;
}

function follow(roots, pinned, known) {
  let current = known;
  for (let version = known ? known.version + 1 : 1; version <= roots.length; version += 1) {
    const bytes = roots[version - 1];
    if (current) current = root(bytes, version, signers(current, "root"));
    else if (parse(envelope(bytes).payload).roles?.root?.keyids?.includes(keyId(pinned)))
      current = root(bytes, version, { keys: { [keyId(pinned)]: pinned }, threshold: 1 });
  }
  insist(current, "no root document");
  return current;
}

function release(bytes, reference, signed) {
  const content = unseal(bytes, RELEASE, signed);
  format(content);
  dates(content);
  insist(["artifact", "kind", "licence"].every((name) => typeof content[name] === "string"), "a field is missing");
  insist(WORD.test(content.name) && WORD.test(content.alias), "name");
  insist(`${content.name}@${content.alias}` === reference, "somebody put it in its place");
  insist(whole(content.version, 1, Number.MAX_SAFE_INTEGER), "version");
  insist(isObject(content.about ?? {}), "about");
  insist(Array.isArray(content.files) && content.files.length >= 1 && content.files.length <= 4096, "files");
  const paths = new Set(), sizes = new Map();
  for (const file of content.files) {
    const parts = typeof file.path === "string" ? file.path.split("/") : [];
    insist(parts.length >= 1 && parts.length <= 8 && file.path.length <= 256, "path");
    insist(parts.every((part) => PART.test(part) && !part.endsWith(".") && !DEVICE.test(part)), "path");
    insist(whole(file.size, 0, 2 ** 40) && HEX.test(file.sha256), "size or digest");
    insist((sizes.get(file.sha256) ?? file.size) === file.size, "one digest, two sizes");
    sizes.set(file.sha256, file.size);
    insist(!paths.has(file.path.toLowerCase()), "two files in one place");
    paths.add(file.path.toLowerCase());
  }
  for (const path of paths)
    for (let end = path.lastIndexOf("/"); end > 0; end = path.lastIndexOf("/", end - 1))
      insist(!paths.has(path.slice(0, end)), "a file where a folder is");
  return content;
}

function confirm(bytes, reference, signed, { version, digest }, now) {
  insist(bytes, "no timestamp");
  const content = unseal(bytes, TIMESTAMP, signed);
  format(content);
  dates(content);
  insist(`${content.name}@${content.alias}` === reference, "somebody put it in its place");
  const [created, expires] = [Date.parse(content.created), Date.parse(content.expires)];
  insist(expires - created <= 30 * 86_400_000, "for more than 30 days");
  insist(content.version === version && content.sha256 === digest, "of another release");
  insist(expires > now, "the timestamp expired");
}

function run(vectors, one) {
  const roots = one.roots.map((text) => Buffer.from(text, "base64"));
  const bytes = Buffer.from(one.release, "base64"), now = Date.parse(vectors.now);
  const stamp = one.timestamp === null ? null : Buffer.from(one.timestamp, "base64");
  const installed = one.installed;
  const trusted = installed ? follow(roots.slice(0, 1), one.pinned, undefined) : undefined;
  const newest = follow(roots, one.pinned, trusted);
  insist(Date.parse(newest.expires) > now, "the root document expired");
  const signed = signers(newest, "release");
  const newRelease = release(bytes, vectors.reference, signed);
  insist(Date.parse(newRelease.expires) > now, "expired");
  const digest = sha256(envelope(bytes).payload), { version } = newRelease;
  if (newest.roles.timestamp) confirm(stamp, vectors.reference, signers(newest, "timestamp"), { version, digest }, now);
  if (installed && Object.keys(signed.keys).some((id) => id in signers(trusted, "release").keys)) {
    insist(version >= installed.version, "older than installed");
    insist(version > installed.version || digest === installed.digest, "other content");
  }
}

function meaning({ start, status, content_range: said }) {
  if (status === 200) return "whole";
  if (status === 206 && start) {
    const place = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(said ?? "");
    return place && +place[1] === start && +place[2] + 1 === +place[3] ? "append" : "without range";
  }
  if (status === 416 && start) return "without range";
  if (status === 404 || status === 410) return "missing";
  return [206, 403, 408, 416, 425, 429].includes(status) || status >= 500 ? "later" : "refused";
}

const vectors = JSON.parse(readFileSync(process.argv[2], "utf-8"));
const cases = {};
for (const one of vectors.cases) {
  try { run(vectors, one); cases[one.name] = "accept"; }
  catch (error) {
    if (!(error instanceof Refused)) throw error;
    cases[one.name] = `refuse: ${error.message}`;
  }
}
console.log(JSON.stringify({ cases, ranges: vectors.ranges.map(meaning) }));
