"""Who runs next: fleet-wide fairness and placement, and the adapter that applies both in vLLM."""
