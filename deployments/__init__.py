"""The Serve deployments (Gateway, Router, EngineReplica) and the wire between their processes."""
