"""What is close to what: fingerprints of payloads, and pairs of them without comparing all. Knows no pipeline."""
