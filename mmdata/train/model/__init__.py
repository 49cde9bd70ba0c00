"""The fused model: towers, adapters, fusion, heads, decoders. `sizes` imports no torch; the rest does."""
