"""How fast the store is, beside what one would use instead. Run ``python -m benchmarks``."""
