"""The artifact store: blobs, manifests, releases, runs."""
