"""Training: configuration, callbacks, self-test, model files."""
