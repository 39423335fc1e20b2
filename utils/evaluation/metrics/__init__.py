"""Measures of separation quality: numpy in, dB out, one function a metric."""
