"""Fetch from the web, politely and safely. Knows no pipeline and no files."""
