"""How well losses train, not how fast."""
