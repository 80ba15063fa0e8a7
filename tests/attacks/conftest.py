"""The folders of the Store's own tests."""

from __future__ import annotations

from tests.store.conftest import empty_store, folder, fresh, store

__all__ = ["empty_store", "folder", "fresh", "store"]
