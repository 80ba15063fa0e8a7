"""Attention of a reply's tokens on pages, one token at a time: shapes never change and nothing waits for the device."""
