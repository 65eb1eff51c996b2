// The pull protocol once more, written from docs/protocol.md alone: node tests/vectors.mjs docs/protocol/vectors.json
// prints for every case what this client does: {"cases": {NAME: "accept" | "refuse: WHY"}, "ranges": […]}.
import { createHash, createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";

const ROOT = "application/vnd.tinymusician.root.v1+json";
const RELEASE = "application/vnd.tinymusician.release.v1+json";
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
  insist(isObject(parsed) && Object.keys(parsed).sort().join() === "payload,payloadType,signatures", "no envelope");
  insist(Array.isArray(parsed.signatures) && parsed.signatures.length >= 1 && parsed.signatures.length <= 8, "signatures");
  return { kind: parsed.payloadType, payload: Buffer.from(parsed.payload, "base64"), signatures: parsed.signatures };
}

function unseal(bytes, kind, publics) {
  const { kind: said, payload, signatures } = envelope(bytes);
  insist(said === kind, "another kind");
  const head = Buffer.from(`DSSEv1 ${Buffer.byteLength(kind)} ${kind} ${payload.length} `);
  const byId = new Map(publics.map((hex) => [keyId(hex), hex]));
  const good = signatures.some(({ keyid, sig }) => {
    if (!byId.has(keyid)) return false;
    const x = Buffer.from(byId.get(keyid), "hex").toString("base64url");
    const key = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" });
    return verify(null, Buffer.concat([head, payload]), key, Buffer.from(sig, "base64"));
  });
  insist(good, "no trusted signature");
  const content = parse(payload);
  insist(isObject(content) && canonical(content) === payload.toString("utf-8"), "not canonical");
  return content;
}

function fields(content, needed, optional) {
  const names = Object.keys(content);
  insist(needed.every((name) => names.includes(name)), "a field is missing");
  insist(names.every((name) => needed.includes(name) || optional.includes(name)), "an unknown field");
}

const whole = (x, least, most) => Number.isSafeInteger(x) && x >= least && x <= most;
const keys = (list, least, most) =>
  Array.isArray(list) && list.length >= least && list.length <= most && list.every((one) => HEX.test(one));

function root(bytes, version, signers) {
  const content = unseal(bytes, ROOT, signers);
  fields(content, ["version", "created", "expires", "root", "release"], ["revoked"]);
  insist(keys(content.root, 1, 8) && keys(content.release, 1, 8) && keys(content.revoked ?? [], 0, 1000), "keys");
  insist(!content.root.some((one) => content.release.includes(one)), "a key for both");
  insist(content.version === version, "another number");
  unseal(bytes, ROOT, content.root);
  return content;
}

function follow(roots, pinned, known) {
  let current = known;
  for (let version = known ? known.version + 1 : 1; version <= roots.length; version += 1) {
    const bytes = roots[version - 1];
    if (current) current = root(bytes, version, current.root);
    else if (parse(envelope(bytes).payload).root.includes(pinned)) current = root(bytes, version, [pinned]);
  }
  insist(current, "no root document");
  return current;
}

function release(bytes, reference, publics) {
  const content = unseal(bytes, RELEASE, publics);
  const needed = ["name", "alias", "version", "created", "expires", "artifact", "kind", "licence", "files"];
  fields(content, needed, ["about"]);
  insist(WORD.test(content.name) && WORD.test(content.alias), "name");
  insist(`${content.name}@${content.alias}` === reference, "somebody put it in its place");
  insist(whole(content.version, 1, Number.MAX_SAFE_INTEGER), "version");
  insist(isObject(content.about ?? {}), "about");
  insist(Array.isArray(content.files) && content.files.length >= 1 && content.files.length <= 4096, "files");
  const paths = new Set(), sizes = new Map();
  for (const file of content.files) {
    fields(file, ["path", "size", "sha256"], []);
    const parts = typeof file.path === "string" ? file.path.split("/") : [];
    insist(parts.length >= 1 && parts.length <= 8 && file.path.length <= 256, "path");
    insist(parts.every((part) => PART.test(part) && !part.endsWith(".")), "path");
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

function run(vectors, one) {
  const roots = one.roots.map((text) => Buffer.from(text, "base64"));
  const bytes = Buffer.from(one.release, "base64");
  const installed = one.installed;
  const trusted = installed ? follow(roots.slice(0, 1), one.pinned, undefined) : undefined;
  const newest = follow(roots, one.pinned, trusted);
  insist(Date.parse(newest.expires) > Date.parse(vectors.now), "the root document expired");
  const newRelease = release(bytes, vectors.reference, newest.release);
  insist(Date.parse(newRelease.expires) > Date.parse(vectors.now), "expired");
  if (installed && newest.release.some((key) => trusted.release.includes(key))) {
    insist(newRelease.version >= installed.version, "older than installed");
    insist(newRelease.version > installed.version || sha256(bytes) === installed.digest, "other content");
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
