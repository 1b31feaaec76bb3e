"""Multi-turn reinforcement learning for language models, with credit for turns."""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports usage when a trainer is made
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func: we pin a tested range of TRL
