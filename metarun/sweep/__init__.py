"""Search over settings: many runs at once, one record of them, and what they say in the end."""
