"""The room that knows transformers: attaching to a model, loading it, naming it, and choosing its next token."""
