"""What Prometheus may read of a gateway and of the fleet; the one part of ops others import."""
