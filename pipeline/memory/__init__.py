"""What a run needs before it runs: bytes by stage, phase and component, operations and time.

shapes.py counts a model's parameters from its config.json; components.py says what each component takes; phases.py
puts them together as the stages allocate; plan.py compares with the device; advice.py proposes what would fit.
docs/memory.md has the formulas, and what was predicted beside what was measured. Never imports torch.
"""
