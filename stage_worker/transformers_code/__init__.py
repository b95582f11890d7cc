"""Models whose code is the transformers library's own, split into stages.

A checkpoint's folder goes in, a stage's decoder comes out, which computes attention over the paged KV pool.
`skeleton.py` builds a model without weights, `attention_calls.py` is what its layers call for attention,
`stage_model.py` keeps the layers of one stage, `weights.py` reads their tensors, `decoder.py` runs them;
`loading.py` puts these together. `trial.py` tries a model out, `examination.py` keeps what was found;
`survey.py` tries all that the library has, `architectures.py` knows what came of it.
"""
