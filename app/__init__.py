"""The application: settings, tenants and keys, the HTTP edge, the command line, and ``build``."""
