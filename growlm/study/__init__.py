"""Studies: many runs side by side, and the report that says what growing was worth."""
