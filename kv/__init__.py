"""Where KV blocks live and how they move: swaps, host memory, and the adapter to vLLM."""
