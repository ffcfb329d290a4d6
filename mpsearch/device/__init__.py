"""Core ML itself: a Mac, or an iPhone attached to one."""
