"""How faithful a method is to the same model with full attention over the same text, inside the trained window."""
