"""vLLM's worker on a CPU, where a seeded request may come to its first token in several steps.

Owns one correction. A step that ends within a prompt samples from it all the same, and vLLM then
takes back what that has drawn from the request's own generator by the generator's offset. A CPU's
generator has none: the engine ended, and so did every other one that the request went on with.
Here a request has no generator of its own while what is sampled for it is thrown away.
"""

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker


class SeededCPUWorker(CPUWorker):
    """Draws from a request's generator exactly what the request's tokens take."""

    def sample_tokens(self, grammar_output: Any) -> Any:
        batch = self.model_runner.input_batch
        is_discarded = self.model_runner.discard_request_mask.np
        unused = {
            index: seeded for index, seeded in batch.generators.items() if is_discarded[index]
        }
        for index in unused:
            del batch.generators[index]
        try:
            return super().sample_tokens(grammar_output)
        finally:
            batch.generators.update(unused)
