"""Changes of the index's format, from version 1 on."""
