"""Lets the tests here import the helpers in tests/."""

import sys
from pathlib import Path

import torch

# Tiny products gain nothing from threads, and lose much where other processes want the cores too.
torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parents[2]))
