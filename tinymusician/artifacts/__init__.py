"""The store, and what lies in it: blobs, manifests, runs."""
