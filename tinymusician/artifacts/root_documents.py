"""The publisher's root documents: creates, extends and replaces the keys that devices trust.

keys/root-000001.json      root documents, numbered without gaps; each is signed by the keys of the one before
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from tinymusician.artifacts import trust
from tinymusician.artifacts.envelope import payload_sha256
from tinymusician.artifacts.key_plan import KeyPlan
from tinymusician.artifacts.keys import (
    KEYS_VARIABLE,
    PrivateKey,
    add_token_key,
    has_encrypted_keys,
    key_id,
    load_key,
    load_keys,
    new_key,
    public_hex,
    scheme_of,
)
from tinymusician.artifacts.root_pin import PIN, RootPin, read_pin, write_pin
from tinymusician.artifacts.run_state import now
from tinymusician.artifacts.secret_input import new_passphrase
from tinymusician.artifacts.store import Store
from tinymusician.artifacts.trust import (
    RoleMembers,
    RoleName,
    RootMetadata,
    members_of,
    next_root,
    read_first,
    read_root,
    root_key,
    sign_root,
)
from tinymusician.errors import KeyFileError, NotFoundError, UntrustedError


class RootDocuments:
    """The root documents of a store, signed with keys of a folder."""

    def __init__(self, store: Store, keys: Path, clock: Callable[[], datetime] = now) -> None:
        self.store, self._keys, self._clock = store, keys, clock

    def roots(self) -> list[RootMetadata]:
        """All root documents, oldest first, each verified against the one before, and all against the pin.

        Without a pin (on a machine without keys) the first one is trusted.

        Raises:
            KeyFileError: there is none.
            UntrustedError: a signature is missing, or they do not match the pin.
        """
        roots, digests = list[RootMetadata](), dict[int, str]()
        for version in range(1, trust.MAX_VERSIONS + 1):
            try:
                data = self.store.get(root_key(version))
            except NotFoundError:
                break
            roots.append(read_root(data, version, roots[-1].signers("root")) if roots else read_first(data))
            digests[version] = payload_sha256(data, f"root document {version}")
        if not roots:
            raise KeyFileError(
                f"store {self.store.url}: has no root document; `tmctl signing-keys create` makes keys and one"
            )
        pin = read_pin(self._keys)
        if pin is not None and (pin.root not in roots[0].public_keys("root") or digests.get(pin.version) != pin.sha256):
            raise UntrustedError(
                f"store {self.store.url}: its root documents are not those that were made with the keys of "
                f"{self._keys}; either this is another store, or they were replaced"
            )
        return roots

    def create(self, plan: KeyPlan | None = None) -> RootMetadata:
        """Create all keys, and the first root document.

        Raises:
            KeyFileError: there is one already.
        """
        if self.store.exists(root_key(1)):
            raise KeyFileError(f"store {self.store.url}: has keys already; `tmctl signing-keys rotate` replaces them")
        if (pin := read_pin(self._keys)) is not None:
            raise KeyFileError(
                f"{self._keys}: has the keys of root document {pin.version}, which {self.store.url} has not: it is "
                f"another store, or they were removed. Put them back; new keys need an empty folder {KEYS_VARIABLE}"
            )
        plan = plan or KeyPlan()
        passphrase = new_passphrase() if plan.is_encrypted else None
        keys: dict[RoleName, list[PrivateKey]] = {
            role: [add_token_key(role, self._keys, uri) for uri in plan.tokens.get(role, ())]
            or [new_key(role, self._keys, plan.scheme, passphrase) for _ in range(count)]
            for role, count in plan.counts.items()
        }
        members = {
            role: RoleMembers(publics=tuple(map(public_hex, each)), threshold=plan.thresholds[role])
            for role, each in keys.items()
        }
        return self._publish(next_root(None, members, self._clock()), keys["root"])

    def extend(self) -> RootMetadata:
        """Extend the root document by a year, with the same keys."""
        before = self.roots()[-1]
        after = next_root(before, members_of(before), self._clock(), before.revoked)
        return self._publish(after, self._signing_keys("root", before))

    def replace_keys(self, role: RoleName, revoke: bool = False, tokens: Sequence[str] = ()) -> RootMetadata:
        """Replace the keys of a role; one `timestamp` that was not there is added.

        `tokens` are the URIs of keys to use instead of new ones. With `revoke`, the release keys so far are listed as
        revoked.
        """
        roots = self.roots()
        before = roots[-1]
        signing, members = self._signing_keys("root", before), members_of(before)
        for each in {role, "release"} if revoke else {role}:
            members[each] = self._new_members(before, each, tokens if each == role else ())
        if role == "root":
            after_keys = [load_key("root", self._keys, [key_id(one)]) for one in members["root"].publics]
            signing = [*signing, *after_keys]
        revoked = {keyid for one in roots for keyid in one.roles["release"].keyids} if revoke else before.revoked
        return self._publish(next_root(before, members, self._clock(), revoked), signing)

    def _new_members(self, before: RootMetadata, role: RoleName, tokens: Sequence[str]) -> RoleMembers:
        """As many new keys as a role had, of the same schemes, with the same threshold; one for a role that is new."""
        old = before.public_keys(role) if role in before.roles else ()
        if tokens and len(tokens) != max(1, len(old)):
            raise KeyFileError(f"--token: {len(tokens)} keys; the role {role} has {max(1, len(old))}")
        passphrase = new_passphrase() if not tokens and has_encrypted_keys(self._keys) else None
        keys: list[PrivateKey] = [add_token_key(role, self._keys, uri) for uri in tokens]
        schemes = [scheme_of(one) or "ed25519" for one in old] or ["ed25519"]
        keys = keys or [new_key(role, self._keys, scheme, passphrase) for scheme in schemes]
        threshold = before.roles[role].threshold if old else 1
        return RoleMembers(publics=tuple(map(public_hex, keys)), threshold=threshold)

    def _signing_keys(self, role: RoleName, root: RootMetadata) -> list[PrivateKey]:
        """As many private keys of a role as must sign. Without a pin nothing is signed: roots cannot be verified.

        Raises:
            KeyFileError: too few keys are here, or the pin is missing.
        """
        if read_pin(self._keys) is None:
            raise KeyFileError(f"{self._keys}: {PIN} is missing; copy it from where the keys were created")
        signers = root.signers(role)
        return load_keys(role, self._keys, signers.keys, signers.threshold)

    def _publish(self, root: RootMetadata, keys: Sequence[PrivateKey]) -> RootMetadata:
        """Sign and write a root document, and pin it.

        Raises:
            KeyFileError: another process has written one meanwhile.
        """
        data = sign_root(root, keys)
        self.store.put(root_key(root.version), data)
        if self.store.get(root_key(root.version)) != data:
            raise KeyFileError(
                f"root document {root.version}: was written by another process at the same time; that one counts"
            )
        pin = read_pin(self._keys)
        first = pin.root if pin and root.version > 1 else root.public_keys("root")[0]
        write_pin(self._keys, RootPin(root=first, version=root.version, sha256=payload_sha256(data, "root document")))
        return root
