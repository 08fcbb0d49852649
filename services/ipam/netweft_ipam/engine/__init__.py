"""What a call means for the store: one idea a module."""
