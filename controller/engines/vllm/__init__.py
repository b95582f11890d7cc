"""vLLM as the body of an instance: in go StepPlans, out come StepReports; vLLM's workers are the stages.

Nothing here imports vLLM before an instance is asked for: `versions.py` says whether it is there.
"""
