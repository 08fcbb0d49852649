"""Network drivers: one pure file each."""
