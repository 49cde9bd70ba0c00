"""Walk the web: what is in scope, what is left to visit, what was seen. Knows no pipeline."""
