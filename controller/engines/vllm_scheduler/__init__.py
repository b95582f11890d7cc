"""The brain inside vLLM's own scheduler: vLLM's requests go in, what its next steps compute comes out.

`mirror.py` (pure) keeps the state that the brain decides by equal to what vLLM says; `scheduler.py` is the
class that vLLM makes; `settings.py` reads what users set; `clock.py`, `step_size.py` time steps and choose
their size; `record.py` tells what happened.
"""
