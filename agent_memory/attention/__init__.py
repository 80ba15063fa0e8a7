"""Which keys and values take part in attention, and at which positions."""
