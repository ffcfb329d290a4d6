"""Asks a device how it computes in FP16, by tiny packages."""
