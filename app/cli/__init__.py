"""The ``fastswitch`` program: one file per command."""
