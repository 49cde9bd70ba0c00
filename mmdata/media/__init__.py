"""Decode and measure one payload, within limits. Knows no pipeline and no files."""
