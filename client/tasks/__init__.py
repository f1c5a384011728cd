"""The built-in client tasks, a folder each."""
