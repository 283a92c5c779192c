"""What a run will need, before it runs: bytes by stage, phase and component; operations and time.

architecture.py counts a model's parameters from its config.json. components.py gives the size of each component,
phases.py adds them up as the stages allocate them, plan.py compares the sum with the device, and advice.py proposes
changes that would fit. limits.py holds the limits that the stages share with the plan. docs/memory.md has the
formulas, and predictions beside measurements. Never imports torch.
"""
