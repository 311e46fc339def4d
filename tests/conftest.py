"""Shared by all tests: one thread per process (so that sums are the same everywhere), and no network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

torch.set_num_threads(1)
