"""Images: source formats, conversion, the cache and its reaper."""
