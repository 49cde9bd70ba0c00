"""Load and batch the scoring models. Knows no pipeline, no parts, no spec."""
