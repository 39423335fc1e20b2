"""Data: corpora, mixing, manifests, reading, data sets."""
