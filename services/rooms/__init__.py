"""The room writers: the only code that appends to a room (DESIGN section 3)."""
