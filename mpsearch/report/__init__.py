"""Tells a person what was kept in FP32, why, and what it costs."""
